"Where pixels come from: slides, photographs and arrays, read by window."
from .. import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, {
    'windows': 'ArrayImage', 'pyramid': 'TiffImage write_pyramid', 'readers': 'PhotoImage SlideImage open_image',
    'canvas': 'Canvas content_share', 'tables': 'BadImageLog read_table',
    'slides': 'SlideDataset ResizedDataset make_loader', 'prepare': 'inspect_files find_duplicates read_images'})
