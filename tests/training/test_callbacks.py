"""metrics.jsonl has every log line once, even after an interruption."""

from types import SimpleNamespace

from modeling_pure.training.run_folder import MetricsFile, read_metrics


def log(metrics, step, **values):
    metrics.on_log(None, SimpleNamespace(global_step=step, is_world_process_zero=True), None, logs=values)


def begin(metrics, step):
    metrics.on_train_begin(None, SimpleNamespace(global_step=step, is_world_process_zero=True), None)


def test_a_resumed_run_replaces_lines_after_its_checkpoint(tmp_path):
    metrics = MetricsFile(str(tmp_path))
    begin(metrics, 0)
    for step in (10, 20, 30):
        log(metrics, step, loss=1.0 / step)
    with metrics.path.open("a") as file:
        file.write('{"step": 40, "lo')
    resumed = MetricsFile(str(tmp_path))
    begin(resumed, 20)
    log(resumed, 30, loss=0.5)
    assert [(line["step"], line["loss"]) for line in read_metrics(metrics.path)] == [(10, 0.1), (20, 0.05), (30, 0.5)]


def test_a_new_run_in_an_old_folder_starts_a_new_file(tmp_path):
    metrics = MetricsFile(str(tmp_path))
    begin(metrics, 0)
    log(metrics, 10, loss=1.0)
    begin(MetricsFile(str(tmp_path)), 0)
    assert read_metrics(metrics.path) == []
