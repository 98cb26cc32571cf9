/* A disk that loses what was not synced, for one process: after each fsync or fdatasync of a regular file below FROM its
 * content is copied to TO. Whoever kills the process and puts those copies in place has what a power cut leaves.
 * With LIE set nothing is copied: a disk that says it has synced and has not. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void keep(int fd) {
    const char *from = getenv("UNSYNCED_FROM"), *to = getenv("UNSYNCED_TO");
    char link[64], path[PATH_MAX], target[PATH_MAX], passing[PATH_MAX + 8];
    struct stat about;
    if (!from || !to || getenv("UNSYNCED_LIE") || fstat(fd, &about) || !S_ISREG(about.st_mode)) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return;
    path[length] = 0;
    if (strncmp(path, from, strlen(from))) return;
    const char *name = strrchr(path, '/') + 1;
    snprintf(target, sizeof target, "%s/%s", to, name);
    snprintf(passing, sizeof passing, "%s.new", target);
    int out = open(passing, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (out < 0) return;
    char chunk[65536];
    off_t at = 0;
    ssize_t got;
    while ((got = pread(fd, chunk, sizeof chunk, at)) > 0) {
        if (write(out, chunk, got) != got) break;
        at += got;
    }
    close(out);
    rename(passing, target);
}

static int synced(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    /* One thread writes the database, so nothing is written between the sync and the copy. */
    pthread_mutex_lock(&lock);
    int result = real(fd);
    if (result == 0) keep(fd);
    pthread_mutex_unlock(&lock);
    return result;
}

int fsync(int fd) { return synced("fsync", fd); }
int fdatasync(int fd) { return synced("fdatasync", fd); }
