"""The package as others get it: a wheel beside a foreign `assets` package, and its own layout."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
USER_CODE = """
import dagster as dg
import assets
import recovery_pipelines, recovery_pipelines.assets, recovery_pipelines.sensors
from recovery_pipelines import RecoveryDrill, build_definitions

assert assets.MINE, "the user's own package called assets"
assert "site-packages" in recovery_pipelines.__file__

@dg.asset
def own_report() -> None: ...

component = dg.build_defs_for_component(RecoveryDrill(target="papers", path="/srv/papers"))
defs = dg.Definitions.merge(
    dg.Definitions(assets=[own_report]), build_definitions("recovery.yaml"), component
)
dg.Definitions.validate_loadable(defs)
keys = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}
assert {"own_report", "corruption_recovery_docs_tar/restore",
        "corruption_recovery_papers_tar/recovery_metrics"} <= keys, keys
print("merged", len(keys))
"""


def run(*argv: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH",)}
    done = subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a clean export of the checkout, through an sdist."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    tracked = run("git", "ls-files", "-co", "--exclude-standard", cwd=PROJECT)
    names = [name for name in tracked.splitlines() if (PROJECT / name).exists()]
    archive = subprocess.run(["tar", "-c", *names], cwd=PROJECT, check=True, capture_output=True)
    subprocess.run(["tar", "-x"], cwd=source, input=archive.stdout, check=True)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", cwd=source)
    (built,) = (folder / "dist").glob("*.whl")
    return built


def test_the_wheel_brings_one_package_with_everything_in_it(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"recovery_pipelines"}
    modules = {
        path.relative_to(PROJECT).as_posix()
        for folder in ("recovery_pipelines", "assets", "sensors")
        for path in (PROJECT / folder).rglob("*.py")
    }
    expected = {
        name if name.startswith("recovery_pipelines/") else f"recovery_pipelines/{name}"
        for name in modules
    }
    templates = (PROJECT / "recovery_pipelines/reporting/templates").iterdir()
    others = {path.relative_to(PROJECT).as_posix() for path in templates}
    others |= {"recovery_pipelines/py.typed", "recovery_pipelines/orchestration/dagster.yaml"}
    assert expected | others == set(names)


def test_users_merge_our_definitions_beside_their_own_assets_package(
    wheel: Path, tmp_path: Path
) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    site = Path(
        run(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=tmp_path).strip()
    )
    # The dependencies come from this environment; our own editable install does not
    # (a .pth file named by a .pth file is not read).
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(
        sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", wheel, cwd=tmp_path
    )
    (site / "assets").mkdir()
    (site / "assets" / "__init__.py").write_text("MINE = True\n")
    plan = "targets:\n  docs:\n    path: /srv/docs\n    engines: [tar]\n"
    (tmp_path / "recovery.yaml").write_text(plan)
    (tmp_path / "user_code.py").write_text(USER_CODE)
    assert "merged 27" in run(python, "user_code.py", cwd=tmp_path)


def test_dagster_finds_the_code_location_from_the_repository_root() -> None:
    dagster = Path(sys.executable).with_name("dagster")
    run(dagster, "definitions", "validate", "-w", "workspace.yaml", cwd=PROJECT)


def test_the_engine_runs_without_dagster() -> None:
    code = (
        "import sys; import recovery_pipelines.drills.recoveries as d; "
        "assert 'dagster' not in sys.modules; print(d.carry_out.__name__)"
    )
    assert "carry_out" in run(sys.executable, "-c", code, cwd=PROJECT)


def test_dagster_and_its_web_server_are_locked_together() -> None:
    for lock in ("requirements.lock", "requirements-dev.lock"):
        pins = {
            line.split("==")[0]: line.split("==")[1].split()[0]
            for line in (PROJECT / lock).read_text().splitlines()
            if "==" in line and not line.startswith((" ", "#"))
        }
        assert pins["dagster"] == pins["dagster-webserver"]
    assert (
        tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["license"]
        == "Apache-2.0"
    )
