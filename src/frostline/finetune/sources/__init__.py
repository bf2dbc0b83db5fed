"""What ``frostline finetune`` loads: models by name, folder or code, and the data to train them on.

Import from the submodules: :mod:`frostline.finetune.sources.opening` has ``open_sources``.
"""
