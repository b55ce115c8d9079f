/* A loopback proxy that makes a path long: every byte arrives ONE_WAY_MS later than it was sent, in both directions.
 *
 *     delayproxy TARGET_PORT ONE_WAY_MS
 *
 * It listens on a free port of 127.0.0.1, prints that port, and ends when its standard input does. Bytes wait in a ring
 * of 64 MiB per direction, more than any window of SSH or TCP here, so the delay is all that it adds: bandwidth is not
 * limited. Each direction has two threads: one receives and notes when a chunk is due, the other waits and sends.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CHUNK = 64 * 1024, CHUNKS = 1024 };

struct chunk {
    struct timespec due;
    ssize_t length; /* 0: the end of the stream */
    char bytes[CHUNK];
};

struct direction {
    int from, to;
    struct connection *connection;
    struct chunk *ring;          /* chunks `sent` … `received` - 1 wait; their memory is touched as it is needed */
    unsigned long received, sent;
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

struct connection {
    int client, server;
    int open; /* directions that have not ended */
    pthread_mutex_t lock;
    struct direction up, down;
};

static long delay_ns;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static struct timespec later(long nanoseconds) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    nanoseconds += time.tv_nsec;
    time.tv_sec += nanoseconds / 1000000000;
    time.tv_nsec = nanoseconds % 1000000000;
    return time;
}

static void *receive(void *argument) {
    struct direction *way = argument;
    ssize_t length;
    do {
        pthread_mutex_lock(&way->lock);
        while (way->received - way->sent == CHUNKS)
            pthread_cond_wait(&way->changed, &way->lock);
        pthread_mutex_unlock(&way->lock);
        struct chunk *chunk = &way->ring[way->received % CHUNKS]; /* ours alone until it is counted */
        length = recv(way->from, chunk->bytes, CHUNK, 0);
        chunk->length = length > 0 ? length : 0;
        chunk->due = later(delay_ns);
        pthread_mutex_lock(&way->lock);
        way->received++;
        pthread_cond_signal(&way->changed);
        pthread_mutex_unlock(&way->lock);
    } while (length > 0);
    return NULL;
}

static int send_all(int to, const char *bytes, ssize_t length) {
    while (length > 0) {
        ssize_t count = send(to, bytes, length, MSG_NOSIGNAL);
        if (count <= 0)
            return -1;
        bytes += count;
        length -= count;
    }
    return 0;
}

static void leave(struct connection *both) {
    pthread_mutex_lock(&both->lock);
    int last = --both->open == 0;
    pthread_mutex_unlock(&both->lock);
    if (!last)
        return;
    close(both->client);
    close(both->server);
    free(both->up.ring);
    free(both->down.ring);
    free(both);
}

static void *deliver(void *argument) {
    struct direction *way = argument;
    pthread_t receiver;
    if (pthread_create(&receiver, NULL, receive, way))
        die("pthread_create");
    int broken = 0;
    for (;;) {
        pthread_mutex_lock(&way->lock);
        while (way->received == way->sent)
            pthread_cond_wait(&way->changed, &way->lock);
        pthread_mutex_unlock(&way->lock);
        struct chunk *chunk = &way->ring[way->sent % CHUNKS];
        if (!chunk->length)
            break;
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &chunk->due, NULL) == EINTR)
            ;
        if (!broken && send_all(way->to, chunk->bytes, chunk->length) < 0) {
            broken = 1; /* nobody takes it: let the other side know, and drop what still comes */
            shutdown(way->from, SHUT_RD);
        }
        pthread_mutex_lock(&way->lock);
        way->sent++;
        pthread_cond_signal(&way->changed);
        pthread_mutex_unlock(&way->lock);
    }
    pthread_join(receiver, NULL);
    shutdown(way->to, SHUT_WR);
    leave(way->connection);
    return NULL;
}

static void start(struct direction *way, struct connection *both, int from, int to) {
    way->from = from;
    way->to = to;
    way->connection = both;
    way->ring = malloc(CHUNKS * sizeof *way->ring);
    if (!way->ring)
        die("malloc");
    pthread_mutex_init(&way->lock, NULL);
    pthread_cond_init(&way->changed, NULL);
}

static void carry(int client, int server) {
    struct connection *both = calloc(1, sizeof *both);
    if (!both)
        die("calloc");
    both->client = client;
    both->server = server;
    both->open = 2;
    pthread_mutex_init(&both->lock, NULL);
    int on = 1;
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    start(&both->up, both, client, server);
    start(&both->down, both, server, client);
    pthread_t thread;
    if (pthread_create(&thread, NULL, deliver, &both->up) || pthread_detach(thread) ||
        pthread_create(&thread, NULL, deliver, &both->down) || pthread_detach(thread))
        die("pthread_create");
}

int main(int count, char **words) {
    if (count != 3) {
        fprintf(stderr, "usage: %s TARGET_PORT ONE_WAY_MS\n", words[0]);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    delay_ns = atof(words[2]) * 1e6;
    struct sockaddr_in target = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1]))};
    target.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct sockaddr_in own = target;
    own.sin_port = 0;
    socklen_t size = sizeof own;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&own, sizeof own) || listen(listener, 64) ||
        getsockname(listener, (struct sockaddr *)&own, &size))
        die("listen");
    printf("%d\n", ntohs(own.sin_port));
    fflush(stdout);
    for (;;) {
        struct pollfd ready[2] = {{.fd = listener, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
        if (poll(ready, 2, -1) < 0 && errno != EINTR)
            die("poll");
        if (ready[1].revents)
            return 0; /* who started us has gone */
        if (!ready[0].revents)
            continue;
        int client = accept(listener, NULL, NULL);
        if (client < 0)
            continue;
        int server = socket(AF_INET, SOCK_STREAM, 0);
        if (server < 0 || connect(server, (struct sockaddr *)&target, sizeof target)) {
            close(client);
            if (server >= 0)
                close(server);
            continue;
        }
        carry(client, server);
    }
}
