"""Where in a YAML file something stands, for errors."""

from __future__ import annotations

import yaml


class Places:
    r"""From a path of keys and positions to ``file, line N``.

    >>> places = Places("phases:\n- epoch: 0\n- epoch: 1\n", "schedule.yaml")
    >>> places("phases", 1, "epoch"), places("phases", 7)
    ('schedule.yaml, line 3', 'schedule.yaml, line 1')
    """

    def __init__(self, text: str, source: str) -> None:
        self._root: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
        self._source = source

    def __call__(self, *path: object) -> str:
        """The place of what the path leads to; of what it leads to last, if it leads nowhere."""
        node, line = self._root, None
        for step in path:
            if isinstance(node, yaml.SequenceNode) and isinstance(step, int):
                node = node.value[step] if step < len(node.value) else None
                mark = node
            elif isinstance(node, yaml.MappingNode):
                pairs = [(key, value) for key, value in node.value if key.value == str(step)]
                mark, node = pairs[0] if pairs else (None, None)
            else:
                break
            if mark is None:
                break
            line = mark.start_mark.line + 1
        return self._source if line is None else f"{self._source}, line {line}"
