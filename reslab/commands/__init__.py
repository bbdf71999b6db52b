"""The commands of `reslab`: one file a verb."""
