"What the trainer stands on."
from .. import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, {'callback': 'Callback ProgressBars', 'checkpoint': 'Checkpoints', 'loader': 'Batch Loader', 'trace': 'Trace', 'zbank': 'ZBank'})
