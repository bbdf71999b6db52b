"""How bytes become token ids: one tokenizer a file, named by its file."""
