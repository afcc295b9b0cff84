// A writer that notices everything: writer FOLDER. Each round writes a file under another name,
// fsyncs it, renames it into place, and reads it back past the page cache; each byte follows from
// the round. It rests between rounds: a writer that never did would take the machine from the
// programs whose pauses it measures. A line a second says how many rounds have ended, and the longest wait of a call since
// the last line, the one under way included:
//   MILLISECONDS-SINCE-START ROUNDS LONGEST-MILLISECONDS
// Anything else than success ends it with a message.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 16384, FILES = 32, REST_MICROSECONDS = 100000 };
static atomic_long rounds, began, longest;

static long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void ended(void) {
  long took = now() - atomic_exchange(&began, 0), seen = atomic_load(&longest);
  while (took > seen && !atomic_compare_exchange_weak(&longest, &seen, took)) {}
}

static void *report(void *start) {
  for (;;) {
    sleep(1);
    long since = atomic_load(&began), most = atomic_exchange(&longest, 0), waits = since ? now() - since : 0;
    printf("%ld %ld %ld\n", now() - *(long *)start, atomic_load(&rounds), waits > most ? waits : most);
    fflush(stdout);
  }
  return NULL;
}

// One call of the file system, timed.
#define CALL(what, call) ({ atomic_store(&began, now()); long r_ = (call); int e_ = errno; ended(); \
    if (r_ < 0) { printf("FAILED %s in round %ld: %s\n", what, atomic_load(&rounds), strerror(e_)); exit(1); } r_; })

static void fill(char *bytes, long round) {
  unsigned long x = 88172645463325252UL + (unsigned long)round * 2654435761UL;
  for (int i = 0; i < SIZE; i += 8) {
    x ^= x << 13; x ^= x >> 7; x ^= x << 17;
    memcpy(bytes + i, &x, 8);
  }
}

static void verify(const char *path, long round) {
  static char *found, wanted[SIZE];
  if (!found && posix_memalign((void **)&found, 4096, SIZE)) exit(1);
  int fd = CALL("open to read", open(path, O_RDONLY | O_DIRECT));
  long n = CALL("read", read(fd, found, SIZE));
  fill(wanted, round);
  if (n != SIZE || memcmp(found, wanted, SIZE)) { printf("FAILED wrong bytes in %s, round %ld\n", path, round); exit(1); }
  CALL("close", close(fd));
}

int main(int argc, char **argv) {
  if (argc != 2 || chdir(argv[1])) { perror("writer FOLDER"); return 2; }
  long start = now();
  static char bytes[SIZE];
  pthread_t thread;
  pthread_create(&thread, NULL, report, &start);
  for (long round = 0;; round++) {
    char name[32];
    snprintf(name, sizeof name, "file-%ld", round % FILES);
    fill(bytes, round);
    int fd = CALL("create", open("draft", O_WRONLY | O_CREAT | O_TRUNC, 0644));
    if (CALL("write", write(fd, bytes, SIZE)) != SIZE) { printf("FAILED short write in round %ld\n", round); return 1; }
    CALL("fsync", fsync(fd));
    CALL("close", close(fd));
    CALL("rename", rename("draft", name));
    verify(name, round);
    // And one that was written long ago.
    if (round >= FILES) {
      long old = round - FILES + 1;
      snprintf(name, sizeof name, "file-%ld", old % FILES);
      verify(name, old);
    }
    atomic_store(&rounds, round + 1);
    usleep(REST_MICROSECONDS);
  }
}
