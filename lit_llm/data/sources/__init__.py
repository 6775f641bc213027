"""Where text and rows come from: files of this machine and data sets of the Hugging Face hub."""
