"""overheard: what a speech recogniser's training updates give away about the people who spoke, and what stops it.

Dimension key, used in every annotation: `N` batch, `T` frames, `T_out` output frames, `F` features, `V` symbols,
`L` labels, `S` samples. Lengths are integers in frames or samples, never fractions.
"""

__version__ = "0.1.0"
