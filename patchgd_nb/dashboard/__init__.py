"What is sampled, how Z fills, and what a prediction rests on, shown while a model trains and afterwards."
from .. import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, {
    'live': 'PatchGDDashboard', 'player': 'replay', 'door': 'watch',
    'explorers': 'SamplerExplorer MemoryWall GradientExplorer', 'slide': 'SlideExplorer'})
