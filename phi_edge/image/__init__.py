"""Images: which files are read (`files`), and how pixels become crops (`crops`)."""

from phi_edge.image.crops import ImageCrops, hd_image, preprocess

__all__ = ["ImageCrops", "hd_image", "preprocess"]
