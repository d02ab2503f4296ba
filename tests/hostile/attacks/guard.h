/* The guard for attacks in C: see guard.py, which it asks. Include it first; it runs before main. */
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

__attribute__((constructor)) static void guard(void)
{
    int status = 0;
    pid_t pid = vfork();
    if (pid == 0) {
        execl("/usr/bin/python3", "python3", "-S", "-B", PILFER_ATTACKS "/guard.py", (char *)0);
        _exit(99);
    }
    if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0)
        _exit(99);
}
