"Learn, watch and use Patch Gradient Descent. The names below are imported when they are first used."
from importlib import import_module

__version__ = "0.2.0"


def lazy_names(
    package: str,              # its `__name__`
    homes: dict[str, str],     # names, parted by spaces, by the module of the package that defines them
) -> tuple:                    # `__getattr__`, `__dir__`, `__all__` of the package (PEP 562)
    "Names that a package hands on and imports only when they are used."
    home = {name: module for module, names in homes.items() for name in names.split()}

    def __getattr__(name: str):
        if name not in home: raise AttributeError(f'module {package!r} has no attribute {name!r}')
        return getattr(import_module(f'{package}.{home[name]}'), name)

    def __dir__() -> list[str]: return [*home, '__version__'] if package == 'patchgd_nb' else list(home)
    return __getattr__, __dir__, list(home)


__getattr__, __dir__, __all__ = lazy_names(__name__, {
    'patches': 'PatchGrid', 'sampler': 'CoverSampler UniformSampler WeightedSampler', 'zblock': 'ZBlock',
    'model': 'PatchModel WholeModel', 'strategy': 'GradientDescent PatchGD ExactPatchGD CarryPatchGD',
    'memory': 'plan', 'trainer': 'Trainer', 'training': 'Callback Trace ZBank', 'images': 'open_image',
    'dashboard': 'PatchGDDashboard replay watch', 'experiment.gradients': 'check_gradients',
    'experiment.tracking': 'TensorBoardLog WandbLog MLflowLog TrackioLog'})
