"""What the facts mean: one pure function a topic, `(Facts, Wish) -> findings`."""
