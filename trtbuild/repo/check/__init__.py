"""`trtbuild check REPOSITORY`: read.py brings the files, the other modules judge them, run.py puts them in order."""
