"""What can be told of pictures: their colours, what moves in them, and whether they have what a text says."""
