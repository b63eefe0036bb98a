"""The small world: scenes drawn with ground truth, on which every method is proven without a download."""
