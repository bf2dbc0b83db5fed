"""Frozen modules run in eval mode and keep their buffers, whatever ``model.train()`` says.

``requires_grad=False`` stops no BatchNorm statistic and no dropout, and one ``model.train()``
undoes ``eval()``. So each frozen module carries a forward pre-hook that sets ``training`` to
False just before it runs. A hook that is an object of a module-level class survives
``train()``, deepcopy, pickle and torch.compile, where an overridden ``train`` method does not.

Where the mode is left to the user, or the mode alone stops nothing (quantisation observers), the
same hook notes the module's buffers before forward and puts them back afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from frostline.freezing.flags import NO_WISH, Wish


def _set_mode(module: nn.Module, *, training: bool) -> None:
    """As ``module.training = …``, without what a module looks at for every attribute that is set.

    A trainer calls ``model.train()`` in each step, and each pin answers.
    """
    held = vars(module)
    if "training" in held and not torch.compiler.is_compiling():
        held["training"] = training
    else:
        module.training = training


class Pin:
    """The hook: forces eval mode and holds buffers, as far as either is wanted.

    Attributes:
        wish: what is wanted of the module.
        mode_before: the module's ``training`` when it was pinned.
        is_copy: whether this pin came with a copied or unpickled module; no freeze call stands
            behind it then, and it stays until the module is thawed.
        trains: whether the module is pinned by a selector although its parameters may train.
        borrowed: modules without parameters that also serve elsewhere, in a part that trains
            (one shared ``nn.Dropout``); they are in eval mode only while this module runs.
    """

    # What few pins have is no attribute of the many: a large model has a pin for every module.
    is_copy = False
    trains = False
    borrowed: tuple[nn.Module, ...] = ()
    restores = False
    had_nested_tensors = False
    # Stacks, since a module may call itself.
    _lent: tuple[list[bool], ...] = ()
    _noted: tuple[dict[str, tuple[Tensor, Tensor]], ...] = ()

    def __init__(self, *, mode_before: bool) -> None:
        self.wish = NO_WISH
        self.mode_before = mode_before

    def __call__(self, module: nn.Module, args: object) -> None:
        """Put the module, and all that is pinned below it, in eval mode; note its buffers."""
        if self.wish.eval_mode and module.training:
            # Not only itself: a module may read the mode of a child that it does not call.
            for below in module.modules():
                if below.training and (pin := pin_of(below)) is not None and pin.wish.eval_mode:
                    _set_mode(below, training=False)
        if self.borrowed:
            self._lent = (*self._lent, [borrowed.training for borrowed in self.borrowed])
            for borrowed in self.borrowed:
                borrowed.training = False
        if self.restores:
            noted = {
                key: (buffer, buffer.detach().clone())
                for key, buffer in module._buffers.items()
                if buffer is not None
            }
            self._noted = (*self._noted, noted)

    def afterwards(self, module: nn.Module) -> None:
        """Give borrowed modules their mode back, and the module its buffers."""
        if self._lent:
            self._lent, modes = self._lent[:-1], self._lent[-1]
            for borrowed, mode in zip(self.borrowed, modes, strict=True):
                borrowed.training = mode
        if self._noted:
            self._noted, noted = self._noted[:-1], self._noted[-1]
            for key, (buffer, content) in noted.items():
                # .data: backward may hold the buffer, and takes a new version for a new value.
                buffer.data.copy_(content)
                module._buffers[key] = buffer

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "is_copy": True, "_lent": (), "_noted": ()}


def _afterwards(module: nn.Module, args: object, output: object) -> None:
    pin = pin_of(module)
    if pin is not None:
        pin.afterwards(module)


def pin_of(module: nn.Module) -> Pin | None:
    """The module's pin, or None; found on the module itself, so that copies have theirs."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, Pin):
            return hook
    return None


def pin_module(
    module: nn.Module,
    wish: Wish,
    *,
    trains: bool,
    borrowed: tuple[nn.Module, ...],
    keeps_padding: bool,
) -> None:
    """Give the module a pin for this wish, or adapt the one that it has.

    Args:
        module: the module.
        wish: what is wanted of it.
        trains: whether its parameters may train all the same.
        borrowed: children without parameters that also serve in a part that trains.
        keeps_padding: it is a TransformerEncoder with a layer in eval mode.
    """
    pin = pin_of(module)
    if pin is None:
        pin = Pin(mode_before=module.training)
        module.register_forward_pre_hook(pin, prepend=True)
    if pin.trains != trains:
        pin.trains = trains
    if wish.eval_mode:
        if module.training:
            module.training = False
    elif pin.wish.eval_mode:
        module.training = pin.mode_before
    pin.wish = wish
    _keep_padding(module, pin, keeps_padding)
    restores = bool(module._buffers) and wish.held_buffers and not _rests(module, wish)
    _assist(module, pin, restores=restores, borrowed=borrowed if wish.eval_mode else ())


def unpin_module(module: nn.Module, pin: Pin) -> None:
    """Take the pin away; the module has the mode that it had before."""
    _assist(module, pin, restores=False, borrowed=())
    _keep_padding(module, pin, False)
    key = next(key for key, hook in module._forward_pre_hooks.items() if hook is pin)
    del module._forward_pre_hooks[key]
    module.training = pin.mode_before


def _assist(
    module: nn.Module, pin: Pin, *, restores: bool, borrowed: tuple[nn.Module, ...]
) -> None:
    """Set what the pin does around forward; the hook after forward is there only if needed."""
    had, has = pin.restores or bool(pin.borrowed), restores or bool(borrowed)
    if not had and not has:
        return
    pin.restores, pin.borrowed = restores, borrowed
    if has and not had:
        # First of all, so that the user's hooks see the module as it stays.
        module.register_forward_hook(_afterwards, prepend=True, always_call=True)
    elif had and not has:
        key = next(key for key, hook in module._forward_hooks.items() if hook is _afterwards)
        del module._forward_hooks[key]
        module._forward_hooks_always_called.pop(key, None)


def _keep_padding(module: nn.Module, pin: Pin, keeps_padding: bool) -> None:
    """Keep a TransformerEncoder off the path that zeroes padded positions, taken in eval only.

    Frozen and trained, the encoder would otherwise hand different values to the live part; and
    one of which only the first layers are frozen would hand the next a nested tensor, which a
    layer in train mode does not take.
    """
    if not isinstance(module, nn.TransformerEncoder):
        return
    if keeps_padding and module.use_nested_tensor:
        pin.had_nested_tensors, module.use_nested_tensor = True, False
    elif not keeps_padding and pin.had_nested_tensors:
        pin.had_nested_tensors, module.use_nested_tensor = False, True


def _rests(module: nn.Module, wish: Wish) -> bool:
    """Whether eval mode alone keeps the buffers; observers of torch.ao take no notice of it."""
    observes = any("Observer" in base.__name__ for base in type(module).__mro__)
    return wish.eval_mode and not observes
