"What the trainer stands on."
from .. import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, {
    'callback': 'Callback ProgressBars', 'checkpoint': 'Checkpoint Checkpoints', 'loader': 'Batch Loader',
    'protocols': 'TrainingStrategy NamedBatchStrategy Stateful BatchLoader ResumableLoader Classifier PatchClassifier',
    'precision': 'Precision Updates', 'resume': 'RunCheckpoints', 'statistics': 'reestimate_statistics',
    'trace': 'Trace', 'zbank': 'ZBank'})
