/* Sees every call to the system that concerns one folder; fails, kills at or records the nth of them.

   Loaded with LD_PRELOAD and driven through ctypes by calls.py. What is seen: calls on paths below the watched
   folder and on descriptors opened there, by this process and by those that it forks. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define MAX_FDS 65536
#define PATH_BYTES 4096

enum { FAIL = 1, KILL = 2, HALF = 4, STICKY = 8 };

static char watched[PATH_BYTES];
static size_t watched_bytes;
static char *paths[MAX_FDS];
static uint64_t ids[MAX_FDS];
static DIR *folders[64];
static uint64_t next_id;
static long calls, at;
static int how, error_code, record_to = -1;
static char kinds[64];

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) abort();
    return found;
}

void calls_watch(const char *folder) {
    snprintf(watched, sizeof watched, "%s", folder);
    watched_bytes = strlen(watched);
    next_id = (uint64_t)getpid() << 32;
}

/* Let the `number`th call of `which` kinds (letters; all if empty) fail with `code`, or kill this process. */
void calls_arm(int mode, long number, int code, const char *which) {
    how = mode, at = number, error_code = code, calls = 0;
    snprintf(kinds, sizeof kinds, "%s", which);
}

long calls_count(void) { return calls; }
void calls_record(int descriptor) { record_to = descriptor; }

static void put(char kind, uint64_t id, uint64_t offset, const char *path, const char *other, const void *bytes, size_t size) {
    if (record_to < 0) return;
    struct __attribute__((packed)) { char kind; uint64_t id, offset, size; uint32_t path, other; } head = {
        kind, id, offset, size, path ? strlen(path) : 0, other ? strlen(other) : 0};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)path, head.path}, {(void *)other, head.other}, {(void *)bytes, bytes ? size : 0}};
    if (!bytes) head.size = 0;
    if (REAL(writev)(record_to, parts, 4) < 0) abort();
}

void calls_mark(const char *text) { put('#', 0, 0, text, NULL, NULL, 0); }

/* The absolute path if it is watched, else NULL. */
static const char *seen(int folder, const char *path, char *room) {
    if (!watched_bytes || !path) return NULL;
    if (path[0] != '/') {
        if (folder != AT_FDCWD && folder >= 0 && folder < MAX_FDS && paths[folder])
            snprintf(room, PATH_BYTES, "%s/%s", paths[folder], path);
        else if (folder == AT_FDCWD && getcwd(room, PATH_BYTES - strlen(path) - 2))
            strcat(strcat(room, "/"), path);
        else
            return NULL;
        path = room;
    }
    if (strncmp(path, watched, watched_bytes)) return NULL;
    return path[watched_bytes] == 0 || path[watched_bytes] == '/' ? path : NULL;
}

static const char *seen_fd(int fd) { return watched_bytes && fd >= 0 && fd < MAX_FDS ? paths[fd] : NULL; }

/* Count a call. 0: go on; 1: fail, errno is set; 2: do half of it, then fail or die. */
static int turn(char kind, const char *path) {
    if (!path || !how || (kinds[0] && !strchr(kinds, kind))) return 0;
    long number = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
    if (number != at && !((how & STICKY) && number > at)) return 0;
    if ((how & HALF) && kind == 'w' && number == at) return 2;
    if (how & KILL) kill(getpid(), SIGKILL);
    if (!(how & FAIL)) return 0;
    errno = error_code;
    return 1;
}

static void know(int fd, const char *path, int flags) {
    if (!path || fd < 0 || fd >= MAX_FDS) return;
    free(paths[fd]);
    paths[fd] = strdup(path);
    ids[fd] = __atomic_add_fetch(&next_id, 1, __ATOMIC_SEQ_CST);
    put('o', ids[fd], (uint64_t)flags, path, NULL, NULL, 0);
}

#define OPEN(name, head, pass, folder, ...)                                            \
    int name(head const char *path, int flags, ...) {                                  \
        char room[PATH_BYTES];                                                         \
        mode_t mode = 0;                                                               \
        if (flags & (O_CREAT | O_TMPFILE)) {                                           \
            va_list rest;                                                              \
            va_start(rest, flags);                                                     \
            mode = va_arg(rest, mode_t);                                               \
            va_end(rest);                                                              \
        }                                                                              \
        const char *full = seen(folder, path, room);                                   \
        if (turn((flags & (O_CREAT | O_WRONLY | O_RDWR)) ? 'o' : 'i', full)) return -1; \
        int fd = REAL(name)(pass path, flags, mode);                                   \
        know(fd, full, flags);                                                         \
        return fd;                                                                     \
    }
#define NOTHING
#define COMMA ,
OPEN(open, NOTHING, NOTHING, AT_FDCWD)
OPEN(open64, NOTHING, NOTHING, AT_FDCWD)
OPEN(openat, int at_fd COMMA, at_fd COMMA, at_fd)
OPEN(openat64, int at_fd COMMA, at_fd COMMA, at_fd)

FILE *fopen64(const char *path, const char *mode) {
    char room[PATH_BYTES];
    if (turn(strpbrk(mode, "wa+") ? 'o' : 'i', seen(AT_FDCWD, path, room))) return NULL;
    return REAL(fopen64)(path, mode);
}

int close(int fd) {
    const char *path = seen_fd(fd);
    int failed = turn('c', path);
    if (path) {
        put('c', ids[fd], 0, NULL, NULL, NULL, 0);
        free(paths[fd]);
        paths[fd] = NULL;
    }
    int result = REAL(close)(fd);
    if (failed) errno = error_code;
    return failed ? -1 : result;
}

static void wrote(int fd, off_t offset, const void *bytes, ssize_t size) {
    if (size > 0) put('w', ids[fd], (uint64_t)offset, NULL, NULL, bytes, (size_t)size);
}

ssize_t write(int fd, const void *bytes, size_t size) {
    const char *path = seen_fd(fd);
    if (!path) return REAL(write)(fd, bytes, size);
    int action = turn('w', path);
    if (action == 1) return -1;
    if (action == 2) size = size / 2;
    off_t before = lseek(fd, 0, (fcntl(fd, F_GETFL) & O_APPEND) ? SEEK_END : SEEK_CUR);
    ssize_t done = REAL(write)(fd, bytes, size);
    wrote(fd, before, bytes, done);
    if (action == 2 && (how & KILL)) kill(getpid(), SIGKILL);
    return done;
}

#define PWRITE(name)                                                           \
    ssize_t name(int fd, const void *bytes, size_t size, off_t offset) {       \
        const char *path = seen_fd(fd);                                        \
        int action = turn('w', path);                                          \
        if (action == 1) return -1;                                            \
        ssize_t done = REAL(name)(fd, bytes, action ? size / 2 : size, offset); \
        if (path) wrote(fd, offset, bytes, done);                              \
        if (action == 2 && (how & KILL)) kill(getpid(), SIGKILL);              \
        return done;                                                           \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t writev(int fd, const struct iovec *parts, int count) {
    const char *path = seen_fd(fd);
    if (!path) return REAL(writev)(fd, parts, count);
    return count ? write(fd, parts[0].iov_base, parts[0].iov_len) : 0; /* a short write, as is allowed */
}

ssize_t read(int fd, void *into, size_t size) {
    if (turn('r', seen_fd(fd))) return -1;
    return REAL(read)(fd, into, size);
}

#define PREAD(name)                                                  \
    ssize_t name(int fd, void *into, size_t size, off_t offset) {    \
        if (turn('r', seen_fd(fd))) return -1;                       \
        return REAL(name)(fd, into, size, offset);                   \
    }
PREAD(pread)
PREAD(pread64)

/* Recorded, but not done: no power fails here, and disks are slow. */
#define SYNC(name)                                                      \
    int name(int fd) {                                                  \
        const char *path = seen_fd(fd);                                 \
        if (!path) return REAL(name)(fd);                               \
        if (turn('f', path)) return -1;                                 \
        put('f', ids[fd], 0, NULL, NULL, NULL, 0);                      \
        return 0;                                                       \
    }
SYNC(fsync)
SYNC(fdatasync)

#define TRUNCATE(name)                                                                   \
    int name(int fd, off_t size) {                                                       \
        if (turn('t', seen_fd(fd))) return -1;                                           \
        int result = REAL(name)(fd, size);                                               \
        if (!result && seen_fd(fd)) put('t', ids[fd], (uint64_t)size, NULL, NULL, NULL, 0); \
        return result;                                                                   \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

static int moved(char kind, int result, const char *from, const char *to) {
    if (!result && (from || to)) put(kind, 0, 0, from, to, NULL, 0);
    return result;
}

#define TWO_PATHS(name, letter, one, two, head, middle, tail, pass, ...)           \
    int name(head const char *from, middle const char *to tail) {                  \
        char room[PATH_BYTES], more[PATH_BYTES];                                   \
        const char *a = seen(one, from, room), *b = seen(two, to, more);           \
        if (turn(letter, a ? a : b)) return -1;                                    \
        return moved(letter, REAL(name) pass, a, b);                               \
    }
TWO_PATHS(rename, 'n', AT_FDCWD, AT_FDCWD, , , , (from, to))
TWO_PATHS(renameat, 'n', d, e, int d COMMA, int e COMMA, , (d, from, e, to))
TWO_PATHS(renameat2, 'n', d, e, int d COMMA, int e COMMA, COMMA unsigned flags, (d, from, e, to, flags))
TWO_PATHS(link, 'l', AT_FDCWD, AT_FDCWD, , , , (from, to))
TWO_PATHS(linkat, 'l', d, e, int d COMMA, int e COMMA, COMMA int flags, (d, from, e, to, flags))

#define ONE_PATH(name, letter, folder, head, tail, pass)             \
    int name(head const char *path tail) {                           \
        char room[PATH_BYTES];                                       \
        const char *full = seen(folder, path, room);                 \
        if (turn(letter, full)) return -1;                           \
        return moved(letter, REAL(name) pass, full, NULL);           \
    }
ONE_PATH(mkdir, 'm', AT_FDCWD, , COMMA mode_t mode, (path, mode))
ONE_PATH(mkdirat, 'm', d, int d COMMA, COMMA mode_t mode, (d, path, mode))
ONE_PATH(unlink, 'u', AT_FDCWD, , , (path))
ONE_PATH(unlinkat, 'u', d, int d COMMA, COMMA int flags, (d, path, flags))
ONE_PATH(rmdir, 'u', AT_FDCWD, , , (path))
ONE_PATH(remove, 'u', AT_FDCWD, , , (path))

#define LOOK(name, letter, folder, head, tail, pass)     \
    int name(head const char *path tail) {               \
        char room[PATH_BYTES];                           \
        if (turn(letter, seen(folder, path, room))) return -1; \
        return REAL(name) pass;                          \
    }
LOOK(stat, 's', AT_FDCWD, , COMMA struct stat *into, (path, into))
LOOK(stat64, 's', AT_FDCWD, , COMMA struct stat64 *into, (path, into))
LOOK(lstat, 's', AT_FDCWD, , COMMA struct stat *into, (path, into))
LOOK(lstat64, 's', AT_FDCWD, , COMMA struct stat64 *into, (path, into))
LOOK(fstatat, 's', d, int d COMMA, COMMA struct stat *into COMMA int flags, (d, path, into, flags))
LOOK(fstatat64, 's', d, int d COMMA, COMMA struct stat64 *into COMMA int flags, (d, path, into, flags))
LOOK(access, 's', AT_FDCWD, , COMMA int mode, (path, mode))
LOOK(faccessat, 's', d, int d COMMA, COMMA int mode COMMA int flags, (d, path, mode, flags))

int fstat(int fd, struct stat *into) { return turn('s', seen_fd(fd)) ? -1 : REAL(fstat)(fd, into); }
int fstat64(int fd, struct stat64 *into) { return turn('s', seen_fd(fd)) ? -1 : REAL(fstat64)(fd, into); }

DIR *opendir(const char *path) {
    char room[PATH_BYTES];
    const char *full = seen(AT_FDCWD, path, room);
    if (turn('d', full)) return NULL;
    DIR *folder = REAL(opendir)(path);
    for (int i = 0; full && folder && i < 64; i++)
        if (!folders[i]) {
            folders[i] = folder;
            break;
        }
    return folder;
}

static const char *seen_folder(DIR *folder) {
    for (int i = 0; i < 64; i++)
        if (folders[i] == folder) return watched;
    return NULL;
}

int closedir(DIR *folder) {
    for (int i = 0; i < 64; i++)
        if (folders[i] == folder) folders[i] = NULL;
    return REAL(closedir)(folder);
}

struct dirent *readdir(DIR *folder) { return turn('d', seen_folder(folder)) ? NULL : REAL(readdir)(folder); }
struct dirent64 *readdir64(DIR *folder) { return turn('d', seen_folder(folder)) ? NULL : REAL(readdir64)(folder); }

#define MAP(name)                                                                       \
    void *name(void *where, size_t size, int access, int flags, int fd, off_t offset) { \
        if (fd >= 0 && turn('p', seen_fd(fd))) return MAP_FAILED;                       \
        return REAL(name)(where, size, access, flags, fd, offset);                      \
    }
MAP(mmap)
MAP(mmap64)
