import pytest
from pydantic import ValidationError

from luna_cls.errors import InputError
from luna_cls.settings import Settings, load_settings, recipe_names


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_survives_toml(recipe, tmp_path):
    """A recipe, written as TOML and read again, gives equal settings."""
    settings = load_settings(recipe)
    path = tmp_path / "settings.toml"
    path.write_text(settings.to_toml(), encoding="utf-8")

    assert load_settings(str(path)) == settings


def test_every_setting_survives_toml(tmp_path):
    """So do settings that differ from the default in every section, free parameters included."""
    overrides = [
        "seed=7",
        "precision=bfloat16",
        "split.validation_folds=[1, 2]",
        "split.test_folds=[0]",
        "sampling.positives_per_batch=4",
        "augmentation.symmetries=none",
        "model.filters=[4, 8]",
        "loss.name=focal",
        "loss.gamma=2.5",
        "optimizer.epsilon=1e-8",
        "training.patience=3",
    ]
    settings = load_settings("seed", overrides)
    path = tmp_path / "settings.toml"
    path.write_text(settings.to_toml(), encoding="utf-8")

    assert load_settings(str(path)) == settings
    assert settings != load_settings("seed")


def test_the_seed_recipe_is_the_forum_s():
    """Batches of 128 at natural prevalence, 15 epochs, AdamW and its schedule, as they were posted."""
    settings = load_settings("seed")

    assert settings.training.batch_size == 128
    assert settings.training.epochs == 15
    assert settings.training.steps_per_epoch is None
    assert settings.sampling.positives_per_batch is None
    assert settings.model.name == "seed_cnn"
    assert settings.model.parameters == {"filters": [16, 32, 64, 128], "dense_units": 512, "dropout": 0.4}
    assert settings.loss.name == "bce"
    assert settings.optimizer.model_dump() == {
        "learning_rate": 1e-3,
        "schedule": "exponential",
        "decay_steps": 100_000,
        "decay_rate": 0.96,
        "staircase": True,
        "warmup_steps": 0,
        "clip_norm": None,
        "beta_1": 0.9,
        "beta_2": 0.99,
        "epsilon": 1e-6,
        "weight_decay": 0.004,
        "decay_biases_and_normalization": True,
    }


def test_the_demo_recipe_promises_nodules_in_every_batch():
    """Its batches of 64 hold 16 nodules each, and its three parts are folds of their own."""
    settings = load_settings("demo")

    assert settings.sampling.positives_per_batch == 16
    assert settings.training.batch_size == 64
    assert not set(settings.split.validation_folds) & set(settings.split.test_folds)


def test_without_a_recipe_the_seed_is_loaded():
    """load_settings() is load_settings("seed")."""
    assert load_settings() == load_settings("seed")


@pytest.mark.parametrize("recipe", ["seed", "demo"])
def test_a_recipe_opens_with_its_command(recipe):
    """The first line of the file says how to run it."""
    from importlib import resources

    text = (resources.files("luna_cls") / "recipes" / f"{recipe}.toml").read_text(encoding="utf-8")

    assert text.startswith("# luna-cls ")
    assert recipe in text.splitlines()[0]


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("training.epochs=3", "training.epochs", 3),
        ("training.epochs = 3", "training.epochs", 3),
        ("optimizer.learning_rate=1e-4", "optimizer.learning_rate", 1e-4),
        ("augmentation.blur_mm=1.5", "augmentation.blur_mm", 1.5),
        ("split.validation_folds=[7, 8]", "split.validation_folds", (7, 8)),
        ("loss.name=focal", "loss.name", "focal"),
        ('loss.name="focal"', "loss.name", "focal"),
        ("training.monitor=val_auc", "training.monitor", "val_auc"),
        ("sampling.positives_per_batch=4", "sampling.positives_per_batch", 4),
    ],
)
def test_an_override_sets_one_value(override, path, value):
    """The value is TOML or, where that fails, text; the other settings stay."""
    section, key = path.split(".")

    actual = load_settings("seed", [override]).model_dump()

    assert actual[section].pop(key) == value
    expected = load_settings("seed").model_dump()
    expected[section].pop(key)
    assert actual == expected


def test_overrides_apply_in_order():
    """Of two values for one key the last one counts."""
    assert load_settings("seed", ["seed=1", "seed=2"]).seed == 2


def test_parameters_of_loss_and_model_stand_beside_their_names():
    """Whatever is beside `name` goes to the thing named."""
    settings = load_settings("seed", ["loss.name=focal", "loss.gamma=5", "loss.apply_class_balancing=true"])

    assert settings.loss.parameters == {"gamma": 5, "apply_class_balancing": True}


def test_settings_are_frozen():
    """Nothing changes a setting once it is loaded."""
    settings = load_settings("seed")

    with pytest.raises(ValidationError, match="frozen"):
        settings.training.epochs = 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=3", "Unknown setting 'training.epoch'. Known in training: epochs, batch_size"),
        ("epochs=3", "Unknown setting 'epochs'. Known at the top: seed, precision, distribution, split"),
        ("trainig.epochs=3", "Unknown setting 'trainig'. Known at the top: .*training"),
        ("training.epochs=0", "training.epochs: .*greater than or equal to 1. Received: 0"),
        ("training.epochs=many", "training.epochs: .*integer.* Received: 'many'"),
        ("precision=float16", "precision: .*'auto', 'float32' or 'bfloat16'. Received: 'float16'"),
        ("split.validation_folds=9", "split.validation_folds: .* Received: 9"),
        ("split.validation_folds=[9, 10]", "split.validation_folds.* Received: 10"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate: .*greater than 0. Received: 0"),
        (
            "optimizer.learning_rate=1e9",
            "optimizer.learning_rate: .*less than or equal to 1. Received: 1000000000",
        ),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate: .* Received: nan"),
        ("optimizer.learning_rate=fast", "optimizer.learning_rate: .*number.* Received: 'fast'"),
        ("optimizer.schedule=linear", "optimizer.schedule: .*'exponential' or 'cosine'. Received: 'linear'"),
        ("training.ema=1", "training.ema: .*less than 1. Received: 1"),
        ("distribution=horovod", "distribution: .*'mirrored' or 'multihost'. Received: 'horovod'"),
        ("optimizer.beta_1=1", "optimizer.beta_1: .*less than 1. Received: 1"),
        ("training=3", "training is a section, not a value. Known in training: epochs"),
        ("seed.deep=3", "--set seed.deep: 'seed' has nothing below it. Received: 3"),
        ("training.epochs", "--set needs key.path=value. Received: 'training.epochs'"),
        ("=3", "--set needs key.path=value. Received: '=3'"),
        ("training..epochs=3", "--set needs key.path=value"),
    ],
)
def test_wrong_overrides_are_refused(override, message):
    """The refusal is one line that names the key, the value received and what is known."""
    with pytest.raises(InputError, match=message) as refusal:
        load_settings("seed", [override])

    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No recipe '.*my.toml'. Known: demo, .*seed, workstation; or give the path of a TOML file"),
        (b"epochs =", "my.toml is not TOML"),
        (b"\xff\xfe\x00", "my.toml"),
        (b"[training]\nepoch = 3\n", "Unknown setting 'training.epoch'"),
    ],
    ids=["missing", "no TOML", "no text", "unknown key"],
)
def test_wrong_recipes_are_refused(tmp_path, content, message):
    """A recipe that is missing, damaged or misspelt is refused in one line."""
    path = tmp_path / "my.toml"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(InputError, match=message) as refusal:
        load_settings(str(path))

    assert "\n" not in str(refusal.value)


def test_another_name_leaves_the_recipe_s_parameters_behind():
    """512 dense units are the seed CNN's; what is set beside the new name stays, in whatever order."""
    overrides = ["model.blocks=2", "model.name=resnet", "loss.gamma=5", "loss.name=focal"]

    settings = load_settings("seed", overrides)

    assert (settings.model.name, settings.model.parameters) == ("resnet", {"blocks": 2})
    assert (settings.loss.name, settings.loss.parameters) == ("focal", {"gamma": 5})
    assert load_settings("seed", ["model.name=seed_cnn"]) == load_settings("seed")
    assert load_settings("seed", [" model.name =resnet"]).model.parameters == {}


def test_a_recipe_that_names_no_model_means_the_default_one(tmp_path):
    """Its parameters are those of the seed CNN, and left behind for another."""
    (tmp_path / "my.toml").write_text("[model]\ndense_units = 5\n")

    assert load_settings(str(tmp_path / "my.toml")).model.parameters == {"dense_units": 5}
    assert load_settings(str(tmp_path / "my.toml"), ["model.name=resnet"]).model.parameters == {}


def test_null_takes_a_setting_away():
    """The workstation's average, clipping and share of nodules; a key that is not there stays away."""
    overrides = ["training.ema=null", "optimizer.clip_norm=null", "training.patience=null"]
    settings = load_settings("workstation", [*overrides, "sampling.positives_per_batch=null"])

    assert settings.training.ema is settings.optimizer.clip_norm is settings.training.patience is None
    assert settings.sampling.positives_per_batch is None
    assert load_settings("seed", ["augmentation.symmetries=none"]).augmentation.symmetries == "none"


def test_an_empty_recipe_gives_the_defaults(tmp_path):
    """What a recipe does not say has its default."""
    (tmp_path / "empty.toml").write_text("")

    assert load_settings(str(tmp_path / "empty.toml")) == Settings()
