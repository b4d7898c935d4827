"""The first real job: a pitch classifier becomes a pitch regressor, on sounds of exactly known pitch.

soundfont  ─>  recordings  ─>  notes          crepe
read a file    choose, group   play, deal     the classifier and its two baselines
"""
