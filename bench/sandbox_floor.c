/* The programs of `bench/spawner.py` that must cost next to nothing themselves, and so are in C.
 *
 *   sandbox_floor sandbox PLAN_FD              what the kernel asks for a sandbox: the same steps as Pilfer's spawner,
 *                                              without a request, an interpreter or a report. `bench/floor.py` lets
 *                                              the spawner's own code prepare the view, the groups and a plan for each
 *                                              lane, and executes this in its place
 *   sandbox_floor command ARGV...              posix_spawn of a command; `{}` becomes a number
 *   sandbox_floor drive FD PID HEAD TAIL       asks the spawner PID on the socket FD; a request is HEAD, an id, TAIL
 *
 * A line `COUNT LANES GAP_US` on stdin runs COUNT in LANES processes, with a pause before each; it is answered by
 * `WALL_NS CPU_NS LATENCY_NS...` on stdout. CPU is that of the lanes and of everything that they waited for.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define ARGS 6
#define LANES_MAX 4
#define COUNT_MAX 20000
#define FILES_MAX 16
#define REPORT_FD 3

struct step {
    long tolerated, number, args[ARGS];
};

struct plan {
    long flags, into_fd, step_count, read_count, reset_count;
    struct step *steps;
    char **paths, **argv, **envp;
    long reads[FILES_MAX], resets[FILES_MAX];
    int scratch_root;
    char *scratch;
};

/* What a PID 1 says, in memory that outlives it. */
struct note {
    int64_t started_ns, ended_ns;
    int status, failed_step, error;
};

/* Shared with the lanes and with each PID 1. */
struct results {
    struct note notes[LANES_MAX];
    int64_t cpu_ns[LANES_MAX];
    int64_t ns[COUNT_MAX];
};

static struct plan plans[LANES_MAX];
static int plan_count, rings;
static char **command_argv;
static int requests = -1, spawner;
static const char *head, *tail;
static struct results *results;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static int64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

/* ---- the plan: written by floor.py as words in host order ---------------------------------------------------- */

static char *cursor;

static long word(void)
{
    long value;
    memcpy(&value, cursor, sizeof value);
    cursor += sizeof value;
    return value;
}

/* Kind 0: a number. 1: bytes, with their count. 2: a list of values, with their count, which ends with a zero. */
static long value(void)
{
    long kind = word(), n = word();
    if (kind == 0)
        return n;
    if (kind == 1) {
        char *bytes = calloc(1, (size_t)n + 1);
        memcpy(bytes, cursor, (size_t)n);
        cursor += n;
        return (long)bytes;
    }
    long *words = calloc((size_t)n + 1, sizeof *words);
    for (long i = 0; i < n; i++)
        words[i] = value();
    return (long)words;
}

static long list(long *into, long most)
{
    long count = word();
    if (count > most)
        exit(2);
    for (long i = 0; i < count; i++)
        into[i] = value();
    return count;
}

static void read_plans(int fd)
{
    struct stat found;
    if (fstat(fd, &found) < 0)
        die("plan");
    cursor = mmap(NULL, (size_t)found.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (cursor == MAP_FAILED)
        die("plan");
    plan_count = (int)word();
    for (int i = 0; i < plan_count; i++) {
        struct plan *p = &plans[i];
        p->flags = word();
        p->into_fd = word();
        p->step_count = word();
        p->steps = calloc((size_t)p->step_count, sizeof *p->steps);
        for (long j = 0; j < p->step_count; j++)
            list((long *)&p->steps[j], sizeof(struct step) / sizeof(long));
        p->paths = (char **)value();
        p->argv = (char **)value();
        p->envp = (char **)value();
        p->read_count = list(p->reads, FILES_MAX);
        p->reset_count = list(p->resets, FILES_MAX);
        p->scratch_root = (int)word();
        p->scratch = (char *)value();
    }
}

/* ---- one sandbox ------------------------------------------------------------------------------------------------ */

static void run_command(struct plan *p)
{
    sigset_t none;
    setsid();
    for (int i = 1; i <= 64; i++) {
        long by_default[4] = {0, 0, 0, 0};
        syscall(SYS_rt_sigaction, i, by_default, 0, 8);
    }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (char **path = p->paths; *path; path++)
        execve(*path, p->argv, p->envp);
    _exit(127);
}

static void pid_1(struct plan *p, struct note *note)
{
    sigset_t mask;
    struct itimerspec later = {{0, 0}, {1, 0}};

    for (long i = 0; i < p->step_count; i++) {
        struct step *s = &p->steps[i];
        long *a = s->args;
        if (syscall(s->number, a[0], a[1], a[2], a[3], a[4], a[5]) < 0 && errno != s->tolerated) {
            note->failed_step = (int)i;
            note->error = errno;
            send(REPORT_FD, "", 1, MSG_NOSIGNAL);
            _exit(1);
        }
    }
    sigemptyset(&mask);
    sigaddset(&mask, SIGCHLD);
    sigaddset(&mask, SIGTERM);
    int signals = signalfd(-1, &mask, SFD_CLOEXEC);
    int timer = timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK);
    pid_t pid = vfork();
    if (pid == 0)
        run_command(p);
    note->started_ns = clock_ns(CLOCK_REALTIME);
    send(REPORT_FD, "", 1, MSG_NOSIGNAL);
    syscall(SYS_close_range, 0, 2, 0);
    timerfd_settime(timer, 0, &later, NULL);
    for (;;) {
        struct pollfd fds[3] = {{signals, POLLIN, 0}, {REPORT_FD, 0, 0}, {timer, POLLIN, 0}};
        struct signalfd_siginfo info;
        int status;
        poll(fds, 3, -1);
        if (fds[1].revents)
            _exit(1);
        if (fds[0].revents && read(signals, &info, sizeof info) < 0)
            _exit(1);
        for (pid_t gone; (gone = waitpid(-1, &status, WNOHANG)) > 0;)
            if (gone == pid) {
                note->status = status;
                note->ended_ns = clock_ns(CLOCK_REALTIME);
                _exit(0);
            }
    }
}

/* Usage of the group, its counters back to zero, its scratch seen to be as it was. */
static void settle(struct plan *p)
{
    char text[4096];
    for (long i = 0; i < p->read_count; i++)
        if (pread((int)p->reads[i], text, sizeof text, 0) < 0)
            die("read");
    for (long i = 0; i < p->reset_count; i++)
        if (pwrite((int)p->resets[i], "0", 1, 0) < 0)
            die("reset");
    struct stat found;
    int fd = openat(p->scratch_root, p->scratch, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &found) < 0 || flistxattr(fd, text, 256) > 0)
        die("scratch");
    while (syscall(SYS_getdents64, fd, text, sizeof text) > 0)
        continue;
    close(fd);
}

static void one_sandbox(int lane)
{
    struct plan *p = &plans[lane];
    struct note *note = &results->notes[lane];
    struct clone_args c = {0};
    sigset_t all, before;
    char ring;

    memset(note, 0, sizeof *note);
    c.flags = (uint64_t)p->flags | CLONE_CLEAR_SIGHAND;
    c.exit_signal = SIGCHLD;
    if (p->into_fd >= 0) {
        c.flags |= CLONE_INTO_CGROUP;
        c.cgroup = (uint64_t)p->into_fd;
    }
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &before);
    long pid = syscall(SYS_clone3, &c, sizeof c);
    if (pid == 0)
        pid_1(p, note);
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (pid < 0)
        die("clone3");
    if (recv(rings, &ring, 1, 0) != 1)
        die("ring");
    if (waitpid((pid_t)pid, NULL, 0) < 0)
        die("waitpid");
    if (!note->ended_ns || note->status != 0) {
        fprintf(stderr, "a sandbox failed: step %d: %s\n", note->failed_step, strerror(note->error));
        exit(1);
    }
    settle(p);
}

/* ---- one command ------------------------------------------------------------------------------------------------- */

static void one_command(int lane, long number)
{
    char name[64], *argv[64], *envp[] = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL};
    int i = 0, status;
    pid_t pid;

    snprintf(name, sizeof name, "bench-%d-%d-%ld", getpid(), lane, number);
    for (; command_argv[i] && i < 63; i++)
        argv[i] = strcmp(command_argv[i], "{}") ? command_argv[i] : name;
    argv[i] = NULL;
    if (posix_spawnp(&pid, argv[0], NULL, NULL, argv, envp) != 0 || waitpid(pid, &status, 0) < 0 || status != 0) {
        fprintf(stderr, "%s failed\n", argv[0]);
        exit(1);
    }
}

/* ---- through the spawner ----------------------------------------------------------------------------------------- */

static void ask(long number, int null)
{
    char text[4096], room[CMSG_SPACE(3 * sizeof(int))] = {0};
    int length = snprintf(text, sizeof text, "%sbench-%ld%s", head, number, tail), fds[3] = {null, null, null};
    struct iovec body = {text, (size_t)length};
    struct msghdr message = {.msg_iov = &body, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *rights = CMSG_FIRSTHDR(&message);

    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(sizeof fds);
    memcpy(CMSG_DATA(rights), fds, sizeof fds);
    if (sendmsg(requests, &message, 0) != length)
        die("request");
}

/* The number of the sandbox whose end is reported next. The form is that of `isolation/packed.py`. */
static long hear_end(void)
{
    struct __attribute__((packed)) {
        char mark, version;
        int16_t exit_code, signal;
        char is_out_of_memory, numbers[56], id[512];
    } report;

    for (;;) {
        ssize_t length = recv(requests, &report, sizeof report - 1, 0);
        if (length <= 0)
            die("report");
        ((char *)&report)[length] = '\0';
        if (report.mark == 'S')
            continue;
        if (report.mark != 'E' || report.exit_code != 0 || strncmp(report.id, "bench-", 6)) {
            fprintf(stderr, "a sandbox failed: %s\n", (char *)&report);
            exit(1);
        }
        return atol(report.id + 6);
    }
}

static void drive(long count, long lanes, long gap_us)
{
    static int64_t asked_at[COUNT_MAX];
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    for (long asked = 0, ended = 0; ended < count; ended++) {
        for (; asked < count && asked - ended < lanes; asked++) {
            if (gap_us)
                usleep((useconds_t)gap_us);
            asked_at[asked] = clock_ns(CLOCK_MONOTONIC);
            ask(asked, null);
        }
        long number = hear_end();
        results->ns[number] = clock_ns(CLOCK_MONOTONIC) - asked_at[number];
    }
    close(null);
}

/* Of the spawner and all that it waited for (proc_pid_stat(5); in steps of a tick). */
static int64_t spawner_cpu_ns(void)
{
    char path[64], text[1024], *at;
    long user, system, children_user, children_system;

    snprintf(path, sizeof path, "/proc/%d/stat", spawner);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    text[length > 0 ? length : 0] = '\0';
    if (!(at = strrchr(text, ')')) || sscanf(at, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %ld %ld %ld %ld", &user,
                                            &system, &children_user, &children_system) != 4)
        die(path);
    return (user + system + children_user + children_system) * (1000000000LL / sysconf(_SC_CLK_TCK));
}

/* ---- lanes ------------------------------------------------------------------------------------------------------- */

static int64_t cpu_ns(int who)
{
    struct rusage used;
    getrusage(who, &used);
    return (used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1000000000LL +
           (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1000LL;
}

static void run_lane(int lane, long from, long to, long gap_us)
{
    int pair[2];
    int64_t cpu = cpu_ns(RUSAGE_SELF) + cpu_ns(RUSAGE_CHILDREN);

    if (!command_argv) {
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
            die("socketpair");
        rings = pair[0];
        dup3(pair[1], REPORT_FD, O_CLOEXEC);
        close(pair[1]);
    }
    for (long i = from; i < to; i++) {
        if (gap_us)
            usleep((useconds_t)gap_us);
        int64_t start = clock_ns(CLOCK_MONOTONIC);
        if (command_argv)
            one_command(lane, i);
        else
            one_sandbox(lane);
        results->ns[i] = clock_ns(CLOCK_MONOTONIC) - start;
    }
    results->cpu_ns[lane] = cpu_ns(RUSAGE_SELF) + cpu_ns(RUSAGE_CHILDREN) - cpu;
}

static void print_memory(void)
{
    char path[64], line[256];

    snprintf(path, sizeof path, "/proc/%d/status", spawner);
    for (FILE *status = fopen(path, "re"); status && fgets(line, sizeof line, status);)
        if (!strncmp(line, "VmRSS:", 6))
            printf("%.1f\n", atol(line + 6) / 1024.0);
    close(requests); /* which ends it */
    waitpid(spawner, NULL, 0);
}

static void run(long count, long lanes, long gap_us)
{
    int64_t start = clock_ns(CLOCK_MONOTONIC), cpu = 0;

    if (spawner) {
        cpu -= cpu_ns(RUSAGE_SELF) + spawner_cpu_ns();
        drive(count, lanes, gap_us);
        cpu += cpu_ns(RUSAGE_SELF) + spawner_cpu_ns();
    }
    for (long lane = 0; !spawner && lane < lanes; lane++)
        if (fork() == 0) {
            run_lane((int)lane, count * lane / lanes, count * (lane + 1) / lanes, gap_us);
            _exit(0);
        }
    for (int status; !spawner && wait(&status) > 0;)
        if (status != 0)
            exit(1);
    int64_t wall = clock_ns(CLOCK_MONOTONIC) - start;
    for (long lane = 0; !spawner && lane < lanes; lane++)
        cpu += results->cpu_ns[lane];
    printf("%lld %lld", (long long)wall, (long long)cpu);
    for (long i = 0; i < count; i++)
        printf(" %lld", (long long)results->ns[i]);
    printf("\n");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    long count, lanes, gap_us;

    if (argc == 3 && !strcmp(argv[1], "sandbox"))
        read_plans(atoi(argv[2]));
    else if (argc > 2 && !strcmp(argv[1], "command"))
        command_argv = &argv[2];
    else if (argc == 6 && !strcmp(argv[1], "drive")) {
        requests = atoi(argv[2]);
        spawner = atoi(argv[3]);
        head = argv[4];
        tail = argv[5];
    } else
        return 2;
    results = mmap(NULL, sizeof *results, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (results == MAP_FAILED)
        die("mmap");
    while (scanf("%ld %ld %ld", &count, &lanes, &gap_us) == 3) {
        if (count < 1 || count > COUNT_MAX || lanes < 1 || lanes > (plan_count ? plan_count : LANES_MAX))
            return 2;
        run(count, lanes, gap_us);
    }
    if (spawner)
        print_memory();
    return 0;
}
