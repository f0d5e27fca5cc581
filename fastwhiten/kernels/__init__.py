"""Triton kernels and their launchers (hop 5 of 5): one file per stage.

Importing any module of this folder imports triton; :mod:`fastwhiten.backends.triton` does so when
a kernel is first needed.
"""
