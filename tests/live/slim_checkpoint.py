"""Writes a checkpoint of one of TF-slim's own networks, in a process of its own:

    python slim_checkpoint.py NETWORK PREFIX CLASSES

Every variable is drawn, and so is a moving average beside each. PREFIX.npz holds the values:
"v:" + a variable's name, "e:" + the name of the variable that an average is of.
"""

import sys

import numpy as np


def main(network: str, prefix: str, classes: int) -> None:
    import tensorflow.compat.v1 as tf
    import tf_keras.src.legacy_tf_layers as legacy

    # tf_slim imports the layers from where tf_keras had them before it moved them.
    sys.modules["tf_keras.legacy_tf_layers"] = legacy
    import tf_slim
    from tf_slim.nets import inception

    tf.disable_eager_execution()
    size = 299 if network == "inception_v3" else 224
    images = tf.placeholder(tf.float32, (1, size, size, 3))
    with tf_slim.arg_scope(getattr(inception, f"{network}_arg_scope")()):
        getattr(inception, network)(images, num_classes=classes, is_training=False)
    tf.train.get_or_create_global_step()
    averages = tf.train.ExponentialMovingAverage(0.5)
    averages.apply(tf_slim.get_model_variables())
    rng = np.random.default_rng(0)
    values = {}
    with tf.Session() as session:
        for variable in tf.global_variables():
            shape = variable.shape.as_list()
            value = rng.uniform(0.5, 1.5, shape).astype(variable.dtype.as_numpy_dtype)
            variable.load(value, session)
            name = variable.op.name
            shadow = name.removesuffix("/ExponentialMovingAverage")
            values[f"v:{name}" if shadow == name else f"e:{shadow}"] = value
        tf.train.Saver().save(session, prefix, write_meta_graph=False)
    np.savez(f"{prefix}.npz", **values)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
