/* What the tasks of a chaos run do, beside beating (tests/support/beat.c):
 *
 *   acts write OUT_LINES ERR_LINES CHUNK_LINES PAUSE_US EXIT_CODE   lines that can be computed (pattern.py)
 *   acts hog MIB              touches so much memory; its limit is lower, so that it does not live to see the end
 *   acts fork COUNT PIDS MS   processes whose parents end before them, up to the limit of PIDS; then ends in their midst
 *
 * All of it is bounded by itself, and refuses (99) where it is no task: in the machine's first PID namespace, or
 * without a task's id. Other exit codes: 28 where there was no room to write, 96 a limit was not in force.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES = 64, CHUNK_MAX = 1024, HOG_MAX_MIB = 256, FORKS_MAX = 64, REFUSED = 99, NO_LIMIT = 96, NO_ROOM = 28 };
/* Of the machine's first PID namespace (include/linux/proc_ns.h). */
static const char FIRST_PID_NAMESPACE[] = "pid:[4026531836]";

static void refuse_outside_of_a_task(void)
{
    char name[64] = "";
    ssize_t length = readlink("/proc/self/ns/pid", name, sizeof name - 1);
    const char *id = getenv("PILFER_TASK_ID");
    if (length <= 0 || strcmp(name, FIRST_PID_NAMESPACE) == 0 || !id || !*id) {
        fputs("acts: this is no task; it does nothing here\n", stderr);
        exit(REFUSED);
    }
}

static void pause_ns(uint64_t ns)
{
    struct timespec left = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
    while (nanosleep(&left, &left) < 0 && errno == EINTR)
        ;
}

static void write_all(int fd, const char *data, size_t length)
{
    while (length) {
        ssize_t written = write(fd, data, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            exit(NO_ROOM);
        data += written;
        length -= (size_t)written;
    }
}

/* Lines `from` up to and without `to` of one stream: id, attempt, stream, number of the line; 64 bytes each. */
static void write_lines(int fd, char stream, uint64_t from, uint64_t to)
{
    static char chunk[CHUNK_MAX * LINE_BYTES + 1];
    const char *id = getenv("PILFER_TASK_ID"), *attempt = getenv("PILFER_ATTEMPT");
    size_t length = 0;
    for (uint64_t number = from; number < to; number++) {
        snprintf(chunk + length, LINE_BYTES + 1, "%-36.36s %04u %c %019llu\n", id, (unsigned)atoi(attempt ? attempt : "0") % 10000u,
                 stream, (unsigned long long)number);
        length += LINE_BYTES;
    }
    write_all(fd, chunk, length);
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static int act_write(uint64_t out, uint64_t err, uint64_t step, uint64_t pause_us, int exit_code)
{
    if (!step || step > CHUNK_MAX)
        return REFUSED;
    for (uint64_t at = 0; at < out || at < err; at += step) {
        if (at < out)
            write_lines(STDOUT_FILENO, 'o', at, least(at + step, out));
        if (at < err)
            write_lines(STDERR_FILENO, 'e', at, least(at + step, err));
        if (pause_us)
            pause_ns(pause_us * 1000u);
    }
    return exit_code;
}

static int act_hog(size_t mib)
{
    if (mib > HOG_MAX_MIB)
        return REFUSED;
    for (size_t held = 0; held < mib; held++) {
        char *more = malloc(1u << 20);
        if (!more)
            return NO_LIMIT;
        memset(more, (int)held + 1, 1u << 20);
        pause_ns(5000000u);
    }
    return NO_LIMIT;
}

static int act_fork(int count, int pids, uint64_t ms)
{
    if (count > FORKS_MAX)
        return REFUSED;
    int born = 0;
    for (; born < count; born++) {
        pid_t child = fork();
        if (child < 0 && errno == EAGAIN)
            break;
        if (child < 0)
            return NO_LIMIT;
        if (child == 0) {
            /* Its child is left to whoever takes orphans in, and is to be there until the command ends. */
            pid_t orphan = fork();
            if (orphan == 0)
                pause_ns(600000000000u);
            _exit(orphan < 0);
        }
        int status = 0;
        waitpid(child, &status, 0);
        if (status)
            break;
    }
    pause_ns(ms * 1000000u);
    return born < pids ? 0 : NO_LIMIT;
}

int main(int argc, char **argv)
{
    refuse_outside_of_a_task();
    if (argc == 7 && strcmp(argv[1], "write") == 0)
        return act_write(strtoull(argv[2], NULL, 10), strtoull(argv[3], NULL, 10), strtoull(argv[4], NULL, 10),
                         strtoull(argv[5], NULL, 10), atoi(argv[6]));
    if (argc == 3 && strcmp(argv[1], "hog") == 0)
        return act_hog(strtoull(argv[2], NULL, 10));
    if (argc == 5 && strcmp(argv[1], "fork") == 0)
        return act_fork(atoi(argv[2]), atoi(argv[3]), strtoull(argv[4], NULL, 10));
    fputs("usage: acts write OUT ERR CHUNK PAUSE_US EXIT | hog MIB | fork COUNT PIDS MS\n", stderr);
    return 2;
}
