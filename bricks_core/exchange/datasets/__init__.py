"""Data sets out to Open-Sora, webdataset and Hugging Face; tables of clips in."""
