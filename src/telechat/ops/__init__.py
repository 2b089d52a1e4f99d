"""Operations on tensors: a reference in plain torch for each, and faster forms chosen per device."""
