"""The package as a whole: that each of its modules imports on the libraries of today."""

import pkgutil
import subprocess
import sys

import tubelet

IMPORT_ALL = """
import importlib, sys, warnings
warnings.filterwarnings("error", category=DeprecationWarning, module=r"tubelet\\.")
warnings.filterwarnings("error", category=FutureWarning, module=r"tubelet\\.")
for name in sys.argv[1:]:
    importlib.import_module(name)
gone = {"torch._six", "timm", "decord", "deepspeed", "torchvision", "torchaudio"} & set(sys.modules)
sys.exit(f"imported: {gone}" if gone else 0)
"""


def test_trap_11_no_module_leans_on_what_libraries_have_removed_or_will():
    found = pkgutil.walk_packages(tubelet.__path__, "tubelet.")
    names = [module.name for module in found if not module.name.endswith("__main__")]
    assert len(names) > 60
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL, *names], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
