/* The part of a sandbox that runs between clone and exec, and its PID 1.
 *
 * Python prepares everything: an ordered list of system calls (the plan, `isolation/plan.py`), the paths to try for
 * the command, argv and envp. This file copies all of that into one mapping (the arena), clones a child into new
 * namespaces, and lets it run the list. What runs in the child is `child()` and what it calls, a page and a half:
 * raw system calls on data in the arena, no libc state, no malloc, nothing of Python. So the child needs nothing of
 * the interpreter's memory (`memory.py` keeps it out of forks, which makes them cheap) nor any locks.
 *
 * The child then stays as PID 1 of the sandbox. It starts the command by vfork, passes SIGTERM from outside on to
 * the command's process group, reaps everything, notes the command's exact wait status, and exits, whereupon the
 * kernel kills whatever is left in the PID namespace. A command that were PID 1 itself would ignore SIGTERM and
 * could not die of abort() (pid_namespaces(7)).
 *
 * It also ends, and all with it, when the spawner is gone (end of file on the report socket; PR_SET_PDEATHSIG alone
 * has a race) and when the fence deadline in the shared page has passed and nobody froze it: the second fence, which
 * covers a spawner that is stopped. A frozen PID 1 does not run and so does not get there.
 *
 * This must not: decide anything, allocate in the child, or call libc there (vfork excepted: its return address
 * lies on the shared stack, which the libc's own code knows to preserve).
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <linux/fs.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ARGS 6
#define KERNEL_SIGSET_BYTES 8
#define KEEP_ARENA_BYTES (256 * 1024)
/* Longer than the spawner needs to freeze at the deadline (100 ms) and shorter than the node's margin before the
 * lease can run out (design, section 4: 0.5 s). */
#define SECOND_FENCE_NS 300000000LL
#define NO_DEADLINE_LOOK_NS 1000000000LL

/* The number of sandboxes at a time; the board takes memory only as far as it is used. */
#define NOTES 16384

enum kind { STEP_FAILED = 1, EXEC_FAILED = 2, ENDED = 3, FENCED = 4 };

/* What one PID 1 says; `isolation/notes.py` has the theory. */
struct note {
    int64_t started_ns; /* CLOCK_REALTIME; 0: the command was not executed */
    int64_t at_ns;      /* of the kind */
    uint32_t kind;      /* 0: nothing yet */
    int32_t a;          /* index of the failed step or tried path; wait status */
    int32_t b;          /* errno; 1 if SIGTERM from outside was passed on before the command ended */
    uint32_t unused;
};

/* Shared with every PID 1. */
struct board {
    volatile int64_t deadline_ns; /* CLOCK_BOOTTIME, 0: none */
    struct note notes[NOTES];
};

struct step {
    long number;
    long args[ARGS];
    long tolerated; /* an errno that counts as success, or 0 */
};

struct launch {
    struct step *steps;
    long step_count;
    char **paths;
    char **argv;
    char **envp;
    int report_fd;
    uint32_t number; /* of its note */
    volatile int exec_errno;
    volatile int exec_index;
};

static char *arena;
static size_t arena_size, arena_used;
static struct board *board;

/* ---- runs in the child -------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
static inline long raw(long n, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
static inline long raw(long n, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory", "cc");
    return x0;
}
#else
#error "only x86_64 and aarch64 are supported"
#endif

static int64_t clock_ns(clockid_t clock)
{
    struct timespec now = {0, 0};
    raw(SYS_clock_gettime, clock, (long)&now, 0, 0, 0, 0);
    return (int64_t)now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void note(const struct launch *l, enum kind kind, int a, int b)
{
    struct note *n = &board->notes[l->number];

    n->at_ns = clock_ns(CLOCK_REALTIME);
    n->a = a;
    n->b = b;
    /* Last, and told to the compiler: a SIGKILL in between must not leave a kind with another's numbers, which would
     * be an exit code of 0. */
    __atomic_store_n(&n->kind, (uint32_t)kind, __ATOMIC_RELEASE);
}

/* The start alone must be told at once; whatever comes later is told by the end of this process. */
static void note_start(const struct launch *l)
{
    board->notes[l->number].started_ns = clock_ns(CLOCK_REALTIME);
    raw(SYS_sendto, l->report_fd, (long)&l->number, sizeof l->number, MSG_NOSIGNAL, 0, 0);
}

static _Noreturn void quit(int code)
{
    for (;;)
        raw(SYS_exit_group, code, 0, 0, 0, 0, 0);
}

/* The command's own process: a group and session of its own, every signal at its default (the spawner ignores some,
 * and what is ignored is inherited over exec), none blocked. Shares the memory of PID 1 until exec. */
static _Noreturn void command(struct launch *l)
{
    struct { /* the kernel's own struct sigaction, all zero: SIG_DFL */
        long words[4];
    } by_default = {{0, 0, 0, 0}};
    uint64_t none = 0;
    int wanted = 0;

    raw(SYS_setsid, 0, 0, 0, 0, 0, 0);
    for (int signal = 1; signal <= 64; signal++) /* real-time ones too */
        raw(SYS_rt_sigaction, signal, (long)&by_default, 0, KERNEL_SIGSET_BYTES, 0, 0);
    raw(SYS_rt_sigprocmask, SIG_SETMASK, (long)&none, 0, KERNEL_SIGSET_BYTES, 0, 0);
    for (int i = 0; l->paths[i]; i++) {
        int error = (int)-raw(SYS_execve, (long)l->paths[i], (long)l->argv, (long)l->envp, 0, 0, 0);
        /* As execvp(3): not found goes on; "found but not allowed" is remembered and goes on; all else ends. */
        if (wanted == 0 || (wanted == ENOENT && error != ENOENT && error != ENOTDIR)) {
            wanted = error == ENOTDIR && l->paths[1] ? ENOENT : error;
            l->exec_index = i;
        }
        if (error != ENOENT && error != ENOTDIR && error != EACCES)
            break;
    }
    l->exec_errno = wanted;
    quit(127);
}

static void arm(int timer, int64_t at_ns)
{
    struct itimerspec when = {{0, 0}, {at_ns / 1000000000LL, at_ns % 1000000000LL}};
    raw(SYS_timerfd_settime, timer, TFD_TIMER_ABSTIME, (long)&when, 0, 0, 0);
}

/* Passes the second fence or does not return. */
static void look_at_deadline(const struct launch *l, int timer)
{
    int64_t deadline = board->deadline_ns, now = clock_ns(CLOCK_BOOTTIME);

    if (deadline != 0 && now >= deadline + SECOND_FENCE_NS) {
        note(l, FENCED, 0, 0);
        quit(1);
    }
    arm(timer, deadline != 0 ? deadline + SECOND_FENCE_NS : now + NO_DEADLINE_LOOK_NS);
}

/* Reaps all that ended; ends with the command. */
static void reap(const struct launch *l, long pid, int passed_on)
{
    int status;
    long ended;

    while ((ended = raw(SYS_wait4, -1, (long)&status, WNOHANG, 0, 0, 0)) > 0) {
        if (ended == pid) {
            note(l, ENDED, status, passed_on);
            quit(0); /* and the kernel kills what it left running */
        }
    }
}

static _Noreturn void reaper(const struct launch *l, long pid, int signals, int timer)
{
    struct pollfd fds[3] = {{signals, POLLIN, 0}, {l->report_fd, 0, 0}, {timer, POLLIN, 0}};
    int passed_on = 0;

    look_at_deadline(l, timer);
    for (;;) {
        raw(SYS_ppoll, (long)fds, 3, 0, 0, KERNEL_SIGSET_BYTES, 0);
        if (fds[1].revents)
            quit(1); /* the spawner is gone */
        if (fds[2].revents) {
            uint64_t count;
            raw(SYS_read, timer, (long)&count, sizeof count, 0, 0, 0);
            look_at_deadline(l, timer);
        }
        if (fds[0].revents) {
            struct signalfd_siginfo info = {0};
            raw(SYS_read, signals, (long)&info, sizeof info, 0, 0, 0);
            /* First reap: a command that ended before the signal was sent has ended by itself. */
            reap(l, pid, passed_on);
            if (info.ssi_signo == SIGTERM && info.ssi_pid == 0) { /* 0: from outside this PID namespace */
                raw(SYS_kill, -pid, SIGTERM, 0, 0, 0, 0);
                passed_on = 1;
            }
        }
    }
}

static _Noreturn void child(struct launch *l)
{
    uint64_t mask = (1ULL << (SIGCHLD - 1)) | (1ULL << (SIGTERM - 1));
    long pid, result;
    int signals, timer;

    for (long i = 0; i < l->step_count; i++) {
        const struct step *s = &l->steps[i];
        result = raw(s->number, s->args[0], s->args[1], s->args[2], s->args[3], s->args[4], s->args[5]);
        if (result < 0 && -result != s->tolerated) {
            note(l, STEP_FAILED, (int)i, (int)-result);
            quit(1);
        }
    }
    /* All signals are blocked here since before clone, so none can be lost. */
    signals = (int)raw(SYS_signalfd4, -1, (long)&mask, KERNEL_SIGSET_BYTES, SFD_CLOEXEC, 0, 0);
    timer = (int)raw(SYS_timerfd_create, CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK, 0, 0, 0, 0);
    if (signals < 0 || timer < 0) {
        note(l, STEP_FAILED, (int)l->step_count, signals < 0 ? -signals : -timer);
        quit(1);
    }
    pid = vfork();
    if (pid == 0)
        command(l);
    if (pid < 0 || l->exec_errno != 0) {
        if (pid < 0)
            note(l, STEP_FAILED, (int)l->step_count, EAGAIN);
        else
            note(l, EXEC_FAILED, l->exec_index, l->exec_errno);
        quit(1);
    }
    note_start(l);
    /* Holding the command's ends open would keep readers and writers of its pipes waiting. */
    raw(SYS_close_range, 0, 2, 0, 0, 0, 0);
    reaper(l, pid, signals, timer);
}

/* ---- runs in the spawner ------------------------------------------------------------------------------------ */

static size_t rounded(size_t n)
{
    return (n + 7) & ~(size_t)7;
}

/* Bytes that `place` will take for an argument, or -1 with an exception. */
static Py_ssize_t room(PyObject *o)
{
    if (o == Py_None || PyLong_Check(o))
        return 0;
    if (PyBytes_Check(o))
        return (Py_ssize_t)rounded((size_t)PyBytes_GET_SIZE(o) + 1);
    if (PyList_Check(o)) {
        Py_ssize_t total = (PyList_GET_SIZE(o) + 1) * 8;
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(o); i++) {
            Py_ssize_t one = room(PyList_GET_ITEM(o, i));
            if (one < 0)
                return -1;
            total += one;
        }
        return total;
    }
    PyErr_Format(PyExc_TypeError, "an argument is int, bytes, None or a list of these, not %s", Py_TYPE(o)->tp_name);
    return -1;
}

static void *take(size_t n)
{
    void *here = arena + arena_used;
    arena_used += rounded(n);
    return here;
}

/* The word for one argument: a number; the address of a copy of bytes; the address of an array of words, ended by a
 * zero word, for a list. */
static long place(PyObject *o)
{
    if (o == Py_None)
        return 0;
    if (PyLong_Check(o))
        return (long)PyLong_AsUnsignedLongMask(o);
    if (PyBytes_Check(o)) {
        size_t n = (size_t)PyBytes_GET_SIZE(o) + 1;
        return (long)memcpy(take(n), PyBytes_AS_STRING(o), n);
    }
    Py_ssize_t count = PyList_GET_SIZE(o);
    long *words = take((size_t)(count + 1) * 8);
    for (Py_ssize_t i = 0; i < count; i++)
        words[i] = place(PyList_GET_ITEM(o, i));
    words[count] = 0;
    return (long)words;
}

static int make_room(size_t bytes)
{
    arena_used = 0;
    if (arena && arena_size >= bytes)
        return 0;
    if (arena)
        munmap(arena, arena_size);
    arena_size = bytes < 65536 ? 65536 : (bytes + 4095) & ~(size_t)4095;
    arena = mmap(NULL, arena_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (arena == MAP_FAILED) {
        arena = NULL;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 0;
}

/* A list holding a huge spec must not keep its memory. */
static void give_room_back(void)
{
    if (arena && arena_size > KEEP_ARENA_BYTES) {
        munmap(arena, arena_size);
        arena = NULL;
    }
}

static PyObject *py_syscall(PyObject *self, PyObject *const *args, Py_ssize_t count)
{
    (void)self;
    long words[ARGS + 1] = {0};
    if (count < 1 || count > ARGS + 1)
        return PyErr_Format(PyExc_TypeError, "syscall takes a number and at most %d arguments", ARGS);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (args[i] == Py_None)
            words[i] = 0;
        else if (PyLong_Check(args[i]))
            words[i] = (long)PyLong_AsUnsignedLongMask(args[i]);
        else if (PyBytes_Check(args[i]))
            words[i] = (long)PyBytes_AS_STRING(args[i]);
        else if (PyByteArray_Check(args[i]))
            words[i] = (long)PyByteArray_AS_STRING(args[i]);
        else
            return PyErr_Format(PyExc_TypeError, "syscall takes int, bytes, bytearray and None");
    }
    long result = raw(words[0], words[1], words[2], words[3], words[4], words[5], words[6]);
    if (result < 0 && result > -4096) {
        errno = (int)-result;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromLong(result);
}

static int fill_step(struct step *s, PyObject *call)
{
    if (!PyTuple_Check(call) || PyTuple_GET_SIZE(call) < 2 || PyTuple_GET_SIZE(call) > ARGS + 2) {
        PyErr_SetString(PyExc_TypeError, "a call is a tuple (tolerated errno, number, up to six arguments)");
        return -1;
    }
    memset(s, 0, sizeof *s);
    s->tolerated = place(PyTuple_GET_ITEM(call, 0));
    s->number = place(PyTuple_GET_ITEM(call, 1));
    for (Py_ssize_t i = 2; i < PyTuple_GET_SIZE(call); i++)
        s->args[i - 2] = place(PyTuple_GET_ITEM(call, i));
    return 0;
}

static long clone_child(unsigned long flags, int cgroup_fd, struct launch *l)
{
    struct clone_args c = {0};
    uint64_t all = ~0ULL, before;
    long pid;

    c.flags = flags | CLONE_CLEAR_SIGHAND;
    c.exit_signal = SIGCHLD;
    if (cgroup_fd >= 0) {
        c.flags |= CLONE_INTO_CGROUP;
        c.cgroup = (uint64_t)cgroup_fd;
    }
    raw(SYS_rt_sigprocmask, SIG_BLOCK, (long)&all, (long)&before, KERNEL_SIGSET_BYTES, 0, 0);
    pid = raw(SYS_clone3, (long)&c, sizeof c, 0, 0, 0, 0);
    if (pid == 0)
        child(l);
    raw(SYS_rt_sigprocmask, SIG_SETMASK, (long)&before, 0, KERNEL_SIGSET_BYTES, 0, 0);
    return pid;
}

static PyObject *py_spawn(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long flags;
    int cgroup_fd, report_fd;
    unsigned int number;
    PyObject *calls, *paths, *argv, *envp;
    if (!PyArg_ParseTuple(args, "kiO!O!O!O!iI", &flags, &cgroup_fd, &PyList_Type, &calls, &PyList_Type, &paths,
                          &PyList_Type, &argv, &PyList_Type, &envp, &report_fd, &number))
        return NULL;
    if (!board) {
        PyErr_SetString(PyExc_RuntimeError, "set_deadline must be called first");
        return NULL;
    }
    if (number >= NOTES)
        return PyErr_Format(PyExc_ValueError, "there is no note of number %u", number);
    Py_ssize_t count = PyList_GET_SIZE(calls);
    size_t bytes = rounded(sizeof(struct launch)) + (size_t)count * sizeof(struct step);
    PyObject *vectors[3] = {paths, argv, envp};
    for (int i = 0; i < 3; i++) {
        Py_ssize_t one = room(vectors[i]);
        if (one < 0)
            return NULL;
        bytes += (size_t)one;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *call = PyList_GET_ITEM(calls, i);
        for (Py_ssize_t j = 0; PyTuple_Check(call) && j < PyTuple_GET_SIZE(call); j++) {
            Py_ssize_t one = room(PyTuple_GET_ITEM(call, j));
            if (one < 0)
                return NULL;
            bytes += (size_t)one;
        }
    }
    if (make_room(bytes) < 0)
        return NULL;
    struct launch *l = take(sizeof *l);
    memset(l, 0, sizeof *l);
    l->steps = take((size_t)count * sizeof(struct step));
    l->step_count = count;
    l->report_fd = report_fd;
    l->number = number;
    for (Py_ssize_t i = 0; i < count; i++)
        if (fill_step(&l->steps[i], PyList_GET_ITEM(calls, i)) < 0)
            return NULL;
    l->paths = (char **)place(paths);
    l->argv = (char **)place(argv);
    l->envp = (char **)place(envp);
    memset(&board->notes[number], 0, sizeof board->notes[number]);
    long pid = clone_child(flags, cgroup_fd, l);
    give_room_back();
    if (pid < 0) {
        errno = (int)-pid;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromLong(pid);
}

static PyObject *py_set_deadline(PyObject *self, PyObject *arg)
{
    (void)self;
    long long ns = PyLong_AsLongLong(arg);
    if (ns == -1 && PyErr_Occurred())
        return NULL;
    if (!board) {
        void *pages = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (pages == MAP_FAILED)
            return PyErr_SetFromErrno(PyExc_OSError);
        board = pages;
    }
    board->deadline_ns = ns;
    Py_RETURN_NONE;
}

static PyObject *py_read_note(PyObject *self, PyObject *arg)
{
    (void)self;
    unsigned long number = PyLong_AsUnsignedLong(arg);
    if (number == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    if (!board || number >= NOTES)
        return PyErr_Format(PyExc_ValueError, "there is no note of number %lu", number);
    const struct note *n = &board->notes[number];
    /* First: PID 1 may be writing at this moment. */
    uint32_t kind = __atomic_load_n(&n->kind, __ATOMIC_ACQUIRE);
    return Py_BuildValue("(LIiiL)", (long long)n->started_ns, kind, n->a, n->b, (long long)n->at_ns);
}

/* Addresses that the child needs (stack, thread-local storage, this file's data, the C library): `memory.py` leaves
 * the mappings that hold them alone. */
static PyObject *py_needed_addresses(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    long local = 0;
    if (arena) {
        munmap(arena, arena_size); /* made anew, outside the mappings that are not forked */
        arena = NULL;
    }
    return Py_BuildValue("(KKKK)", (unsigned long long)(uintptr_t)&local,
                         (unsigned long long)(uintptr_t)__builtin_thread_pointer(),
                         (unsigned long long)(uintptr_t)&board, (unsigned long long)(uintptr_t)&vfork);
}

static PyMethodDef methods[] = {
    {"syscall", (PyCFunction)(void (*)(void))py_syscall, METH_FASTCALL, "syscall(number, *args): raises OSError."},
    {"spawn", py_spawn, METH_VARARGS, "spawn(flags, cgroup_fd, calls, paths, argv, envp, report_fd, number): pid."},
    {"read_note", py_read_note, METH_O, "read_note(number): (started_ns, kind, a, b, at_ns) of a PID 1."},
    {"set_deadline", py_set_deadline, METH_O, "set_deadline(boottime_ns): the second fence; 0 for none."},
    {"needed_addresses", py_needed_addresses, METH_NOARGS, "Addresses in memory that a child needs."},
    {NULL, NULL, 0, NULL},
};

/* Numbers and flags as this machine's headers have them, so that Python needs no table per architecture. */
static const struct {
    const char *name;
    long value;
} constants[] = {
#define CALL(name) {"SYS_" #name, SYS_##name}
    CALL(capset), CALL(chdir), CALL(close), CALL(close_range), CALL(dup3), CALL(ioctl), CALL(keyctl),
    CALL(madvise), CALL(mkdirat), CALL(mknodat), CALL(mount), CALL(mount_setattr), CALL(move_mount),
    CALL(open_tree), CALL(openat), CALL(openat2), CALL(pivot_root), CALL(prctl), CALL(prlimit64),
    CALL(setgroups), CALL(sethostname), CALL(setns), CALL(setresgid), CALL(setresuid), CALL(signalfd4),
    CALL(socket), CALL(timerfd_create), CALL(timerfd_settime), CALL(umount2), CALL(unshare), CALL(write),
#define NAME(name) {#name, name}
    NAME(CLONE_NEWNS), NAME(CLONE_NEWPID), NAME(CLONE_NEWUTS), NAME(CLONE_NEWIPC), NAME(CLONE_NEWNET),
    NAME(CLONE_NEWCGROUP), NAME(CLONE_NEWUSER), NAME(CLONE_NEWTIME),
    NAME(MS_RDONLY), NAME(MS_NOSUID), NAME(MS_NODEV), NAME(MS_NOEXEC), NAME(MS_REMOUNT), NAME(MS_BIND), NAME(MS_REC),
    NAME(MS_PRIVATE),
    NAME(MOUNT_ATTR_RDONLY), NAME(MOUNT_ATTR_NOSUID), NAME(MOUNT_ATTR_NODEV), NAME(MOUNT_ATTR_NOEXEC),
    NAME(OPEN_TREE_CLONE), NAME(OPEN_TREE_CLOEXEC), NAME(MOVE_MOUNT_F_EMPTY_PATH), NAME(RESOLVE_NO_SYMLINKS),
    NAME(RESOLVE_NO_MAGICLINKS), NAME(TFD_CLOEXEC), NAME(TFD_NONBLOCK), NAME(SFD_CLOEXEC), NAME(SFD_NONBLOCK),
    NAME(MADV_DONTFORK), NAME(NOTES),
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "isolation._sandbox", "Clone, plan, reaper: see the C file.", -1, methods, 0, 0, 0, 0,
};

PyMODINIT_FUNC PyInit__sandbox(void)
{
    PyObject *m = PyModule_Create(&module);
    if (!m)
        return NULL;
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (PyModule_AddIntConstant(m, constants[i].name, constants[i].value) < 0)
            return NULL;
    return m;
}
