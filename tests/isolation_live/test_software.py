"""Ordinary software under the filter, the masks and a user of its own: what people run must not notice any of it.

A program that this machine lacks is skipped by name.
"""

from __future__ import annotations

import os
import shutil

import pytest

from isolation.spec import Limits
from tests.isolation_live.conftest import Result, Runner

pytestmark = pytest.mark.isolation

LIMITS = Limits(cpu=2.0, memory_bytes=1 << 30, pids=256)

PYTHON = """
import asyncio, ctypes, faulthandler, fcntl, mmap, multiprocessing, os, select, signal, socket, sqlite3, subprocess
import sys, tempfile, threading, time
faulthandler.dump_traceback_later(60, exit=True)

def square(x):
    return x * x

def main():
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(square, range(4)) == [0, 1, 4, 9]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(square, [3]) == [9]
    threads = [threading.Thread(target=time.sleep, args=(0,)) for _ in range(20)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert subprocess.run(["sh", "-c", "echo $0; exit 3"], capture_output=True).returncode == 3

    async def talk():
        async def serve(reader, writer):
            writer.write(await reader.readline())
            writer.close()
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\\n")
        assert await reader.readline() == b"hello\\n"
        process = await asyncio.create_subprocess_exec("true")
        assert await process.wait() == 0
        server.close()
    asyncio.run(talk())

    with tempfile.TemporaryDirectory() as directory:
        database = sqlite3.connect(os.path.join(directory, "d"))
        database.execute("pragma journal_mode=wal")
        database.execute("create table t (x)")
        database.executemany("insert into t values (?)", [(i,) for i in range(100)])
        database.commit()
        assert database.execute("select sum(x) from t").fetchone() == (4950,)
    with tempfile.TemporaryFile() as file:
        file.truncate(8192)
        fcntl.flock(file, fcntl.LOCK_EX)
        mmap.mmap(file.fileno(), 8192)[0] = 1
    socket.getaddrinfo("localhost", 80)
    socket.if_nameindex()
    assert socket.has_ipv6 and socket.socket(socket.AF_INET6)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    assert signal.sigwait([signal.SIGALRM]) == signal.SIGALRM
    poll = select.epoll(); poll.close()
    os.sched_setaffinity(0, os.sched_getaffinity(0))
    os.nice(1)
    os.memfd_create("x")
    ctypes.CDLL(None).personality(0xFFFFFFFF)
    assert os.getrandom(4)
    os.posix_spawnp("true", ["true"], {})
    print("whole")

if __name__ == "__main__":
    main()
"""

C_PROGRAM = """
#include <pthread.h>
#include <stdio.h>
#include <semaphore.h>
#include <spawn.h>
#include <sys/wait.h>
extern char **environ;
static sem_t done;
static void *run(void *x) { sem_post(&done); return x; }
int main(void) {
    pthread_t threads[8];
    sem_init(&done, 0, 0);
    for (int i = 0; i < 8; i++) if (pthread_create(&threads[i], 0, run, 0)) return 1;
    for (int i = 0; i < 8; i++) { sem_wait(&done); pthread_join(threads[i], 0); }
    pid_t pid; int status; char *argv[] = {"true", 0};
    if (posix_spawnp(&pid, "true", 0, 0, argv, environ) || waitpid(pid, &status, 0) != pid || status) return 2;
    FILE *p = popen("echo whole", "r");
    char line[20];
    if (!p || !fgets(line, sizeof line, p) || pclose(p)) return 3;
    fputs(line, stdout);
    return 0;
}
"""

#: What it needs, and a script that prints `whole` at its end where all went well.
SCRIPTS = {
    "c compiler": ("gcc", f"cat >p.c <<'END'\n{C_PROGRAM}END\ngcc -O1 -pthread p.c -o p && ./p"),
    "git": (
        "git",
        "git init -q r && cd r && git config user.email a@b && git config user.name a && echo x >f && git add f && "
        "git commit -qm m && git clone -q . ../c && git -C ../c log --oneline | grep -q m && git gc -q && echo whole",
    ),
    "tar, gzip, xz": (
        "xz",
        "mkdir d && cp -r /etc/alternatives d/ && tar czf a.tgz d && tar cJf a.txz d && mkdir o && tar xzf a.tgz -C o "
        "&& diff -r d o/d && xz -dc a.txz | tar tf - >/dev/null && echo whole",
    ),
    "perl": ("perl", "perl -e 'use POSIX; my $p = fork; if (!$p) { exit 0 } waitpid $p, 0; print `echo whole`'"),
    "node.js": (
        "node",
        "node -e \"const {Worker} = require('worker_threads'), {execSync} = require('child_process'); "
        "require('fs').promises.readFile('/etc/hostname').then(() => new Worker('0', {eval: true}).on('exit', () => "
        "process.stdout.write(execSync('echo whole'))))\"",
    ),
    "java": (
        "java",
        "cat >H.java <<'END'\npublic class H { public static void main(String[] a) throws Exception {\n"
        'Thread t = new Thread(() -> {}, "named"); t.start(); t.join();\n'
        'new ProcessBuilder("echo", "whole").inheritIO().start().waitFor(); System.gc(); } }\nEND\n'
        "java -Xmx128m H.java",
    ),
    "sqlite": (
        "sqlite3",
        "sqlite3 d 'pragma journal_mode=wal; create table t(x); insert into t values(1);' && echo whole",
    ),
    "curl over loopback": (
        "curl",
        "echo whole >index.html; /usr/bin/python3 -u -m http.server 8000 --bind 127.0.0.1 2>log >out & "
        "curl -s --retry 20 --retry-connrefused --retry-delay 1 http://localhost:8000/; kill $!",
    ),
    "dpkg": ("dpkg", "dpkg -l | grep -q ii && dpkg -S /bin/sh >/dev/null && dpkg --print-architecture && echo whole"),
    "openssl": (
        "openssl",
        "openssl req -x509 -newkey rsa:2048 -nodes -keyout k -out c -subj /CN=x 2>/dev/null && "
        "openssl speed -seconds 1 -evp aes-128-gcm >/dev/null 2>&1; openssl x509 -in c -noout -subject && echo whole",
    ),
    "rust": (
        "rustc",
        "echo 'fn main() { std::thread::spawn(|| println!(\"whole\")).join().unwrap() }' >m.rs && rustc m.rs && ./m",
    ),
    "shell with jobs": (
        "bash",
        'bash -c \'set -m; sleep 0 & wait; coproc cat; echo whole >&"${COPROC[1]}"; read -u "${COPROC[0]}" x; '
        "echo $x'",
    ),
    "terminal": ("script", "script -qec 'stty -a >/dev/null && tty >/dev/null && echo whole' /dev/null | tr -d '\\r'"),
    "gdb's and sanitizers' way to fixed addresses": ("setarch", "setarch -R true && echo whole"),
    "make": (
        "make",
        "printf 'all: a b\\na b:\\n\\t@touch $@\\n' >Makefile && make -sj4 && ls a b >/dev/null && echo whole",
    ),
    "sync and friends": (
        "sync",
        "echo x >f && sync f && sync && chmod 600 f && touch -d yesterday f && ln f g && echo whole",
    ),
}


def _is_whole(result: Result) -> bool:
    return result.ended.exit_code == 0 and result.stdout.split()[-1:] == ["whole"]


async def test_python(runner: Runner) -> None:
    script = f"cat >p.py <<'END'\n{PYTHON}END\nexec /usr/bin/python3 p.py"
    result = await runner.sh(script, limits=LIMITS)
    assert _is_whole(result), result


@pytest.mark.parametrize("name", SCRIPTS)
async def test_programs(runner: Runner, name: str) -> None:
    needs, script = SCRIPTS[name]
    if shutil.which(needs, path="/usr/local/bin:/usr/bin:/bin") is None:
        pytest.skip(f"{needs} is not installed")
    result = await runner.sh(script, limits=LIMITS, env={"HOME": "/home/task"})
    assert _is_whole(result), result


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="machine code of x86_64")
async def test_a_32_bit_call_ends_the_program(runner: Runner) -> None:
    """getpid by `int 0x80`: the number means another call in that table, so none is let through."""
    code = (
        "import ctypes, mmap\nm = mmap.mmap(-1, 4096, prot=7)\nm.write(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3')\n"
        "print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))())"
    )
    result = await runner.run("/usr/bin/python3", "-c", code)
    assert result.ended.signal == 31, result  # SIGSYS
    assert result.stdout == ""
