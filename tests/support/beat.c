/* Two programs in one, for the witness of tests/support/beats.py (the theory stands there):
 *
 *   beat task SOCKET PERIOD_US DURATION_MS [EXIT_CODE]   what a task runs: a datagram each period, until its time is up
 *   beat witness SOCKET FILE                             writes every datagram that arrives into FILE, one line each
 *
 * A line is: arrived_ns sent_ns started_ns kind attempt fence task_id node_id. All times are CLOCK_MONOTONIC, which is
 * one clock for all processes of the machine. kind: b for a beat, e for the last one of a run that ended by itself.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = 256 };

static uint64_t now_ns(void)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

_Noreturn static void die(const char *what)
{
    perror(what);
    exit(3);
}

static struct sockaddr_un address_of(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof(address.sun_path)) {
        fprintf(stderr, "the path of the socket is too long: %s\n", path);
        exit(2);
    }
    strcpy(address.sun_path, path);
    return address;
}

static const char *from_environment(const char *name)
{
    const char *value = getenv(name);
    return value && *value ? value : "-";
}

static void send_beat(int fd, uint64_t started_ns, char kind)
{
    char line[LINE_MAX_BYTES];
    int length = snprintf(line, sizeof line, "%llu %llu %c %s %s %s %s", (unsigned long long)now_ns(),
                          (unsigned long long)started_ns, kind, from_environment("PILFER_ATTEMPT"),
                          from_environment("PILFER_FENCE"), from_environment("PILFER_TASK_ID"),
                          from_environment("PILFER_NODE_ID"));
    /* Waits while the witness has no room: a beat is late rather than lost. */
    while (send(fd, line, (size_t)length, 0) < 0)
        if (errno != EINTR)
            die("send to the witness");
}

static int task(const char *path, uint64_t period_ns, uint64_t duration_ns, int exit_code)
{
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un address = address_of(path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("connect to the witness");
    uint64_t started_ns = now_ns(), end_ns = started_ns + duration_ns, next_ns = started_ns;
    while (now_ns() < end_ns) {
        send_beat(fd, started_ns, 'b');
        /* After a freeze it goes on from now, without making up for what it missed. */
        next_ns = now_ns() > next_ns + 2 * period_ns ? now_ns() : next_ns + period_ns;
        if (next_ns > end_ns)
            next_ns = end_ns;
        struct timespec until = {(time_t)(next_ns / 1000000000u), (long)(next_ns % 1000000000u)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    }
    send_beat(fd, started_ns, 'e');
    return exit_code;
}

/* A network namespace of its own, where this many datagrams may wait (the default is 10). */
static void make_room(void)
{
    if (unshare(CLONE_NEWNET) < 0)
        die("unshare");
    int fd = open("/proc/sys/net/unix/max_dgram_qlen", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "4096", 4) != 4)
        die("max_dgram_qlen");
    close(fd);
}

_Noreturn static void witness(const char *path, const char *file)
{
    make_room();
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un address = address_of(path);
    FILE *out = fopen(file, "we");
    /* Tasks run as users of their own. */
    umask(0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die("bind");
    if (!out)
        die(file);
    puts("ready");
    fflush(stdout);
    char line[LINE_MAX_BYTES];
    for (;;) {
        ssize_t length = recv(fd, line, sizeof line, MSG_DONTWAIT);
        if (length < 0 && errno == EAGAIN) {
            /* Nothing waits: what was written is shown, then it sleeps until more comes. */
            fflush(out);
            length = recv(fd, line, sizeof line, 0);
        }
        if (length < 0) {
            if (errno == EINTR)
                continue;
            die("recv");
        }
        fprintf(out, "%llu %.*s\n", (unsigned long long)now_ns(), (int)length, line);
    }
}

int main(int argc, char **argv)
{
    if (argc >= 5 && strcmp(argv[1], "task") == 0)
        return task(argv[2], strtoull(argv[3], NULL, 10) * 1000u, strtoull(argv[4], NULL, 10) * 1000000u,
                    argc > 5 ? atoi(argv[5]) : 0);
    if (argc == 4 && strcmp(argv[1], "witness") == 0)
        witness(argv[2], argv[3]);
    fputs("usage: beat task SOCKET PERIOD_US DURATION_MS [EXIT_CODE] | beat witness SOCKET FILE\n", stderr);
    return 2;
}
