"""What descriptions are rewarded for: the images of a class, through the whole embedding or through some heads."""
