"""PixelCNN++: an autoregressive model of images that samples pixel by pixel, row by row."""
