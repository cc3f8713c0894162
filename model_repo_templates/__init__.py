"""The Triton model repository as templates; installed as `trtbuild.model_repo_templates`."""
