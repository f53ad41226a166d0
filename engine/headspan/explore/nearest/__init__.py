"""Find the images nearest to an image or a text, through heads or through the whole embedding."""
