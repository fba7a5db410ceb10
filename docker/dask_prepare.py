"""Cuts the cubes of LUNA16 on many machines: Dask workers, then `luna-cls prepare --dask`.

python docker/dask_prepare.py LUNA_DIR STORE --jobs 8                 eight SLURM jobs, from a login node
python docker/dask_prepare.py LUNA_DIR STORE --jobs 2 --local         two processes of this machine, to try it

Every machine must see LUNA_DIR and STORE at the same paths. Where SLURM wants an account or a partition, say
so in ~/.config/dask/jobqueue.yaml, as dask-jobqueue's documentation tells. Further options go to `prepare`.
Needs `pip install 'luna_cls[cluster]'`.
"""

import argparse
import subprocess
import sys


def main() -> int:
    """Starts workers, runs the command, and lets them go; its exit status is that of `luna-cls prepare`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("luna_dir")
    parser.add_argument("store")
    parser.add_argument("--jobs", type=int, default=8, help="jobs, each of one worker")
    parser.add_argument("--memory", default="4GB", help="of a worker; `luna-cls audit` says what it needs")
    parser.add_argument("--walltime", default="02:00:00", help="of a job")
    parser.add_argument("--local", action="store_true", help="processes of this machine, without SLURM")
    given, options = parser.parse_known_args()
    with _cluster(given) as cluster:
        cluster.scale(given.jobs)
        cluster.wait_for_workers(1)
        command = ["luna-cls", "prepare", given.luna_dir, given.store, "--dask", cluster.scheduler_address]
        return subprocess.run([*command, *options], check=False).returncode  # noqa: S603 - as asked for


def _cluster(given: argparse.Namespace):
    if given.local:
        from distributed import LocalCluster

        return LocalCluster(n_workers=0, threads_per_worker=1, memory_limit=given.memory)
    from dask_jobqueue import SLURMCluster

    return SLURMCluster(cores=1, processes=1, memory=given.memory, walltime=given.walltime)


if __name__ == "__main__":
    sys.exit(main())
