"""When, if, then: the rule model, the matcher, the fold, actions."""
