"Where pixels come from: slides, photographs and arrays, read by window."
from .. import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, {'readers': 'open_image write_pyramid', 'canvas': 'Canvas content_share', 'slides': 'SlideDataset ResizedDataset make_loader'})
