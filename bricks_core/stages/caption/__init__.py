"""Caption: kept clips and their images get a sentence or a few each, and every one a status."""
