"""The main job behind ``frostline finetune``: data, networks, training loop, run folder.

Nothing here prints; the command-line layer does. Import from the submodules: this package
imports none of them, so that listing the command's options does not load torch.
"""
