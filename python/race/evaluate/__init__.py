"""How far a predicted uncertainty can be trusted: metrics, recalibration, figures, `race
evaluate`.
"""
