/* A loopback proxy that makes a path long: every byte arrives ONE_WAY_MS later than it was sent, in both directions.
 *
 *     delayproxy TARGET_PORT ONE_WAY_MS
 *
 * It listens on a free port of 127.0.0.1, prints that port, and ends when its standard input does. The delay is all that
 * it adds: a direction holds 4096 pieces of up to 32 KiB, more than any window of SSH or TCP here, so bandwidth is not
 * limited. And it costs little, as a real path costs the ends nothing: bytes are never copied, they wait in pipes
 * (splice(2)), and one thread looks every half millisecond what has come and what is due: a byte may be half a millisecond
 * early or late.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { PIPES = 16, PIPE_SIZE = 1 << 20, NOTES = 8192, MOST = 1 << 20, CONNECTIONS = 256 };
static const long TICK = 500000; /* nanoseconds */

/* So many bytes of a pipe are due at a time. */
struct note {
    long long due;
    ssize_t length;
    int pipe;
};

struct direction {
    int from, to;
    int pipes[PIPES][2];
    int filling;                    /* the pipe that takes what comes */
    struct note notes[NOTES];       /* a ring */
    unsigned long received, sent;   /* notes `sent` … `received` - 1 wait */
    long long ends;                 /* when the end of the stream is due; 0: it has not come */
    int broken, done;
};

struct connection {
    int client, server;
    struct direction up, down;
};

static long long delay;
static struct connection *connections[CONNECTIONS];

static void die(const char *what) {
    perror(what);
    exit(1);
}

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* Take in all that has come. */
static void receive(struct direction *way, long long time) {
    int full = 0;
    while (!way->ends && full < PIPES && way->received - way->sent < NOTES) {
        ssize_t length = splice(way->from, NULL, way->pipes[way->filling][1], NULL, MOST, SPLICE_F_NONBLOCK);
        if (length > 0) {
            struct note *note = &way->notes[way->received++ % NOTES];
            *note = (struct note){time + delay, length, way->filling};
            full = 0;
        } else if (length < 0 && errno == EAGAIN) {
            struct pollfd more = {.fd = way->from, .events = POLLIN};
            if (poll(&more, 1, 0) <= 0)
                return; /* nothing has come; else this pipe is full */
            way->filling = (way->filling + 1) % PIPES;
            full++;
        } else {
            way->ends = time + delay;
        }
    }
}

/* Pass on all that is due. */
static void deliver(struct direction *way, long long time) {
    static char dropped[1 << 16];
    while (way->received != way->sent) {
        struct note *note = &way->notes[way->sent % NOTES];
        if (note->due > time)
            return;
        int out = way->pipes[note->pipe][0];
        ssize_t length = way->broken
                             ? read(out, dropped, note->length < (ssize_t)sizeof dropped ? note->length : (ssize_t)sizeof dropped)
                             : splice(out, NULL, way->to, NULL, note->length, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);
        if (length > 0) {
            if (!(note->length -= length))
                way->sent++;
        } else if (errno == EAGAIN && !way->broken) {
            return; /* the other end takes no more now */
        } else {
            way->broken = 1; /* nobody takes it: let the other side know, and drop what still comes */
            shutdown(way->from, SHUT_RD);
        }
    }
    if (way->ends && way->ends <= time && !way->done) {
        shutdown(way->to, SHUT_WR);
        way->done = 1;
    }
}

static void open_pipes(struct direction *way, int from, int to) {
    way->from = from;
    way->to = to;
    for (int i = 0; i < PIPES; i++) {
        if (pipe2(way->pipes[i], O_NONBLOCK | O_CLOEXEC))
            die("pipe2");
        fcntl(way->pipes[i][1], F_SETPIPE_SZ, PIPE_SIZE);
    }
}

static void close_pipes(struct direction *way) {
    for (int i = 0; i < PIPES; i++) {
        close(way->pipes[i][0]);
        close(way->pipes[i][1]);
    }
}

static void leave(struct connection **both) {
    close_pipes(&(*both)->up);
    close_pipes(&(*both)->down);
    close((*both)->client);
    close((*both)->server);
    free(*both);
    *both = NULL;
}

static void take(int listener, const struct sockaddr_in *target) {
    int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (client < 0)
        return;
    int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1, place = 0;
    while (place < CONNECTIONS && connections[place])
        place++;
    if (place == CONNECTIONS || server < 0 || connect(server, (const struct sockaddr *)target, sizeof *target)) {
        close(client);
        if (server >= 0)
            close(server);
        return;
    }
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    fcntl(client, F_SETFL, O_NONBLOCK);
    fcntl(server, F_SETFL, O_NONBLOCK);
    struct connection *both = calloc(1, sizeof *both);
    if (!both)
        die("calloc");
    both->client = client;
    both->server = server;
    open_pipes(&both->up, client, server);
    open_pipes(&both->down, server, client);
    connections[place] = both;
}

/* Carry all connections one step further; say whether anything is on its way. */
static int carry(void) {
    int busy = 0;
    long long time = now();
    for (int i = 0; i < CONNECTIONS; i++) {
        struct connection *both = connections[i];
        if (!both)
            continue;
        struct direction *ways[] = {&both->up, &both->down};
        for (int j = 0; j < 2; j++) {
            receive(ways[j], time);
            deliver(ways[j], time);
            busy |= ways[j]->received != ways[j]->sent || (ways[j]->ends && !ways[j]->done);
        }
        if (both->up.done && both->down.done)
            leave(&connections[i]);
    }
    return busy;
}

int main(int count, char **words) {
    if (count != 3) {
        fprintf(stderr, "usage: %s TARGET_PORT ONE_WAY_MS\n", words[0]);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    delay = atof(words[2]) * 1e6 - TICK; /* it waits for a tick twice, half of one each time: together this */
    struct sockaddr_in target = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1]))};
    target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct sockaddr_in own = target;
    own.sin_port = 0;
    socklen_t size = sizeof own;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&own, sizeof own) || listen(listener, 64) ||
        getsockname(listener, (struct sockaddr *)&own, &size))
        die("listen");
    printf("%d\n", ntohs(own.sin_port));
    fflush(stdout);
    struct pollfd ready[2 + 2 * CONNECTIONS] = {{.fd = listener, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    for (;;) {
        int busy = carry(), watched = 2;
        if (!busy) /* sleep until something comes */
            for (int i = 0; i < CONNECTIONS; i++)
                if (connections[i]) {
                    struct direction *ways[] = {&connections[i]->up, &connections[i]->down};
                    for (int j = 0; j < 2; j++)
                        if (!ways[j]->ends)
                            ready[watched++] = (struct pollfd){.fd = ways[j]->from, .events = POLLIN};
                }
        struct timespec tick = {0, TICK};
        if (ppoll(ready, watched, busy ? &tick : NULL, NULL) < 0 && errno != EINTR)
            die("ppoll");
        if (ready[1].revents)
            return 0; /* who started us has gone */
        if (ready[0].revents)
            take(listener, &target);
    }
}
