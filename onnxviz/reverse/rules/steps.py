"""Operators that nothing passes: their outputs do not change with small changes of their inputs."""

from __future__ import annotations

from onnxviz.reverse.rules.registry import stop

stop(
    *(
        "And",
        "Or",
        "Xor",
        "Not",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "IsNaN",
        "IsInf",
    ),
    because="gives truth values",
)
stop("ArgMax", "ArgMin", "NonZero", "NonMaxSuppression", "Shape", "Size", because="gives places or sizes")
stop("Ceil", "Floor", "Round", "Sign", "Hardmax", because="is a step: its derivative is zero")
stop(
    *("BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor"),
    because="works on whole numbers",
)
stop(
    *(
        "Bernoulli",
        "Multinomial",
        "RandomNormalLike",
        "RandomUniformLike",
        "EyeLike",
        "ConstantOfShape",
        "Range",
    ),
    because="takes no value from its input",
)
