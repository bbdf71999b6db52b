"""Parts of the tables of families: fields, designs, tensors, files."""
