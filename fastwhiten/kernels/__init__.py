"""Triton kernels and their launchers: one file per stage.

Importing any module of this folder imports triton; :mod:`fastwhiten.backends.triton` does so when
a kernel is first needed.
"""
