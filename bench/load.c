/*
 * A load generator that costs little, so that the server is measured and not the client.
 *
 *     load PROTOCOL HOST:PORT REQUESTS EXPECTED [option value]...
 *
 * PROTOCOL says where an answer ends: `line` (a newline), `redis` (RESP 2), `http` (Content-Length, or chunks).
 * REQUESTS is a file of ready-made requests, each after its length in four bytes, least significant first. Each
 * connection begins at a place of its own in it, goes through all of it and begins again, and keeps `depth` requests
 * under way. An answer counts when it contains EXPECTED; all others are errors, so that a refusal is never taken for an
 * answer. Answers must come in the order of the requests.
 *
 *     connections  how many (1)
 *     depth        requests under way on each (1)
 *     sources      addresses of this machine, 127.7.0.1 and so on, that the connections come from in turns; 0: the
 *                  kernel's choice. What servers allow one address they allow each of these (0)
 *     warmup       seconds that are not counted (0)
 *     seconds      how long is counted (1)
 *     count        send so many requests instead, without a warm-up; 0: go by the time (0)
 *     pid          of a server, whose CPU time is told too; may be given eight times
 *
 * Prints one line of JSON. Ends with 1 and a sentence when a connection fails or nothing comes for ten seconds.
 *
 * What keeps it cheap: requests lie one after the other in memory, so that any number of them is one send(); the time
 * is read once for all that came together; a histogram, not a list; epoll, level-triggered, one recv() for each event.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    CONNECTIONS_MAX = 20000,
    DEPTH_MAX = 65536,
    PIDS_MAX = 8,
    EVENTS_MAX = 256,
    RECEIVE_BYTES = 64 * 1024,
    ANSWER_BYTES_MAX = 64 * 1024 * 1024,
    SILENCE_MS_MAX = 10000,
    STEPS = 64,          /* of the histogram, between a power of two and the next: 1.6 % */
    POWERS = 64,
    WRONG_BYTES_MAX = 200,
};

typedef struct {
    int fd;
    bool writable_wanted;
    size_t next;                /* request to send next */
    size_t from, to;            /* bytes of `requests` that still have to be sent */
    uint64_t *sent_ns;          /* when each request under way was sent: a ring of `depth` */
    size_t oldest, under_way;
    char *buffer;
    size_t filled, size;
} Connection;

/* How long the answer is that the bytes begin with, 0 when it is not all there. */
typedef size_t (*Measure)(const char *bytes, size_t length);

static struct { size_t connections, depth, sources, count; double warmup, seconds; } option = {
    .connections = 1, .depth = 1, .seconds = 1.0 };
static clockid_t clocks[PIDS_MAX];
static size_t pids;
static char *requests;                  /* their bytes, one after the other */
static size_t *offset, request_count;   /* where each begins, and where the last one ends */
static const char *expected;
static size_t expected_length;
static Measure measure;
static int epoll;
static uint64_t unsent = UINT64_MAX;     /* how many more may be sent */

/* What is measured. */
static uint64_t histogram[POWERS * STEPS], answers, errors, bytes_in, longest_ns;
static char wrong[WRONG_BYTES_MAX + 1];

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t ns_of(clockid_t clock)
{
    struct timespec time;
    if (clock_gettime(clock, &time))
        fail("a process whose CPU time is wanted is gone: %s", strerror(errno));
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void *allocated(void *memory)
{
    if (!memory)
        fail("no memory");
    return memory;
}

/* -- where an answer ends ----------------------------------------------------------------------------------------- */

static size_t line_length(const char *bytes, size_t length)
{
    const char *end = memchr(bytes, '\n', length);
    return end ? (size_t)(end - bytes) + 1 : 0;
}

static size_t redis_length(const char *bytes, size_t length)
{
    size_t line = line_length(bytes, length);
    if (!line || (*bytes != '$' && *bytes != '*'))
        return line;
    long counted = strtol(bytes + 1, NULL, 10);
    if (counted < 0)
        return line; /* nil */
    if (*bytes == '$')
        return line + (size_t)counted + 2 <= length ? line + (size_t)counted + 2 : 0;
    for (; counted > 0; counted--) {
        size_t item = redis_length(bytes + line, length - line);
        if (!item)
            return 0;
        line += item;
    }
    return line;
}

/* A body in chunks, without trailers. */
static size_t chunks_length(const char *bytes, size_t length)
{
    for (size_t at = 0, line; (line = line_length(bytes + at, length - at));) {
        size_t chunk = strtoul(bytes + at, NULL, 16);
        at += line + chunk + 2;
        if (at > length)
            break;
        if (!chunk)
            return at;
    }
    return 0;
}

static bool is_header(const char *line, size_t length, const char *name)
{
    size_t named = strlen(name);
    return length > named && !strncasecmp(line, name, named);
}

static size_t http_length(const char *bytes, size_t length)
{
    static const char counted[] = "content-length:", encoded[] = "transfer-encoding:";
    long body = -1;
    bool chunked = false;
    for (size_t at = 0, line; (line = line_length(bytes + at, length - at)); at += line) {
        if (is_header(bytes + at, line, counted))
            body = strtol(bytes + at + sizeof counted - 1, NULL, 10);
        else if (is_header(bytes + at, line, encoded))
            chunked = true;
        else if (line == 2 && body < 0 && !chunked)
            fail("an answer whose end cannot be known: %.*s", (int)at, bytes);
        else if (line == 2) {
            size_t end = at + line;
            size_t rest = chunked ? chunks_length(bytes + end, length - end) : (size_t)body;
            return (rest || !chunked) && end + rest <= length ? end + rest : 0;
        }
    }
    return 0;
}

/* -- what is counted ---------------------------------------------------------------------------------------------- */

/* Buckets of an HDR histogram: linear between powers of two. */
static size_t bucket_of(uint64_t ns)
{
    if (ns < STEPS)
        return ns;
    unsigned power = 63 - (unsigned)__builtin_clzll(ns);                    /* at least 6 */
    return (power - 5) * STEPS + ((ns >> (power - 6)) & (STEPS - 1));
}

/* The largest time that falls into the bucket. */
static double us_of(size_t bucket)
{
    if (bucket < STEPS)
        return (double)bucket / 1000;
    unsigned shift = (unsigned)(bucket / STEPS) - 1;
    return (double)(((STEPS + bucket % STEPS + 1) << shift) - 1) / 1000;
}

static double percentile_us(double part)
{
    uint64_t wanted = (uint64_t)(part * (double)answers), seen = 0;
    for (size_t bucket = 0; bucket < POWERS * STEPS; bucket++)
        if ((seen += histogram[bucket]) > wanted)
            return us_of(bucket);
    return (double)longest_ns / 1000;
}

static size_t shown(size_t length)
{
    return length < WRONG_BYTES_MAX ? length : WRONG_BYTES_MAX;
}

static void count(const char *answer, size_t length, uint64_t took_ns)
{
    bytes_in += length;
    if (memmem(answer, length, expected, expected_length)) {
        answers++;
        histogram[bucket_of(took_ns)]++;
        if (took_ns > longest_ns)
            longest_ns = took_ns;
    } else if (!errors++) {
        for (size_t at = 0; at < shown(length); at++) { /* as it can stand in JSON */
            char byte = answer[at] == '"' ? '\'' : answer[at];
            wrong[at] = byte < ' ' || byte > '~' || byte == '\\' ? '.' : byte;
        }
    }
}

static void forget_counts(void)
{
    memset(histogram, 0, sizeof histogram);
    answers = errors = bytes_in = longest_ns = 0;
    wrong[0] = 0;
}

/* -- connections -------------------------------------------------------------------------------------------------- */

static void want_writable(Connection *connection, bool wanted)
{
    if (connection->writable_wanted == wanted)
        return;
    connection->writable_wanted = wanted;
    struct epoll_event event = { EPOLLIN | (wanted ? EPOLLOUT : 0), { .ptr = connection } };
    epoll_ctl(epoll, EPOLL_CTL_MOD, connection->fd, &event);
}

/* Whether all went out. */
static bool flush(Connection *connection)
{
    while (connection->from < connection->to) {
        size_t left = connection->to - connection->from;
        ssize_t sent = send(connection->fd, requests + connection->from, left, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) {
            want_writable(connection, true);
            return false;
        }
        if (sent < 0)
            fail("cannot send: %s (%llu answers so far)", strerror(errno), (unsigned long long)answers);
        connection->from += (size_t)sent;
    }
    want_writable(connection, false);
    return true;
}

/* Have as many under way as there may be. */
static void top_up(Connection *connection, uint64_t now_ns)
{
    while (unsent && connection->under_way < option.depth) {
        if (offset[connection->next] != connection->to) { /* not the continuation of what is still to be sent */
            if (!flush(connection))
                return;
            connection->from = offset[connection->next];
        }
        unsent--;
        connection->to = offset[connection->next + 1];
        size_t slot = connection->oldest + connection->under_way++;
        connection->sent_ns[slot < option.depth ? slot : slot - option.depth] = now_ns;
        connection->next = connection->next + 1 == request_count ? 0 : connection->next + 1;
    }
    flush(connection);
}

static void receive(Connection *connection, uint64_t now_ns)
{
    if (connection->filled == connection->size) {
        if (connection->size >= ANSWER_BYTES_MAX)
            fail("an answer of more than %d bytes", ANSWER_BYTES_MAX);
        connection->buffer = allocated(realloc(connection->buffer, connection->size *= 2));
    }
    char *buffer = connection->buffer;
    ssize_t got = recv(connection->fd, buffer + connection->filled, connection->size - connection->filled, 0);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0)
        fail("the server hung up: %s (%llu answers so far)", got ? strerror(errno) : "it closed the connection",
             (unsigned long long)answers);
    connection->filled += (size_t)got;
    size_t used = 0;
    for (size_t length; (length = measure(buffer + used, connection->filled - used)); used += length) {
        if (!connection->under_way)
            fail("an answer to nothing: %.*s", (int)shown(length), buffer + used);
        count(buffer + used, length, now_ns - connection->sent_ns[connection->oldest]);
        connection->oldest = connection->oldest + 1 == option.depth ? 0 : connection->oldest + 1;
        connection->under_way--;
    }
    connection->filled -= used;
    if (connection->filled && used)
        memmove(buffer, buffer + used, connection->filled);
}

static void open_connection(Connection *connection, size_t number, const struct sockaddr_in *server)
{
    connection->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (option.sources) {
        uint32_t host = (uint32_t)(number % option.sources);
        struct sockaddr_in source = { .sin_family = AF_INET };
        source.sin_addr.s_addr = htonl(0x7f070000 + (host / 250 << 8) + host % 250 + 1);
        if (bind(connection->fd, (struct sockaddr *)&source, sizeof source))
            fail("cannot use the address 127.7.%u.%u: %s", host / 250, host % 250 + 1, strerror(errno));
    }
    if (connect(connection->fd, (const struct sockaddr *)server, sizeof *server))
        fail("cannot connect: %s", strerror(errno));
    int yes = 1;
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    fcntl(connection->fd, F_SETFL, O_NONBLOCK);
    connection->next = number * request_count / option.connections;
    connection->from = connection->to = offset[connection->next];
    connection->sent_ns = allocated(calloc(option.depth, sizeof *connection->sent_ns));
    connection->size = RECEIVE_BYTES;
    connection->buffer = allocated(malloc(connection->size));
    struct epoll_event event = { EPOLLIN, { .ptr = connection } };
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, connection->fd, &event))
        fail("epoll: %s", strerror(errno));
}

/* Deal with what has come, for 100 ms at most; the time afterwards. */
static uint64_t turn(void)
{
    static int silent_ms;
    struct epoll_event events[EVENTS_MAX];
    int ready = epoll_wait(epoll, events, EVENTS_MAX, 100);
    uint64_t now_ns = ns_of(CLOCK_MONOTONIC);
    silent_ms = ready > 0 ? 0 : silent_ms + 100;
    if (silent_ms > SILENCE_MS_MAX)
        fail("no answer for %d s (%llu so far)", SILENCE_MS_MAX / 1000, (unsigned long long)answers);
    for (int at = 0; at < ready; at++) {
        if (events[at].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
            receive(events[at].data.ptr, now_ns);
        top_up(events[at].data.ptr, now_ns);
    }
    return now_ns;
}

/* -- the course of it --------------------------------------------------------------------------------------------- */

static void read_requests(const char *path)
{
    int file = open(path, O_RDONLY);
    struct stat about;
    if (file < 0 || fstat(file, &about))
        fail("%s: %s", path, strerror(errno));
    size_t size = (size_t)about.st_size;
    requests = allocated(malloc(size + 1));
    for (size_t got = 0; got < size;) {
        ssize_t piece = read(file, requests + got, size - got);
        if (piece <= 0)
            fail("%s: %s", path, piece ? strerror(errno) : "it became shorter");
        got += (size_t)piece;
    }
    close(file);
    offset = allocated(calloc(size / 4 + 2, sizeof *offset));
    for (size_t at = 0; at < size;) { /* move them together, over the lengths */
        const unsigned char *head = (unsigned char *)requests + at;
        size_t left = size - at;
        size_t length = left < 4 ? 0 : head[0] | (size_t)head[1] << 8 | (size_t)head[2] << 16 | (size_t)head[3] << 24;
        if (!length || length > left - 4)
            fail("%s: no request at byte %zu", path, at);
        memmove(requests + offset[request_count], requests + at + 4, length);
        offset[request_count + 1] = offset[request_count] + length;
        request_count++;
        at += 4 + length;
    }
    if (!request_count)
        fail("%s: there are no requests in it", path);
}

static void read_options(int count_, char **words)
{
    for (int at = 0; at + 1 < count_; at += 2) {
        const char *name = words[at];
        char *end;
        double value = strtod(words[at + 1], &end);
        if (*end || value < 0)
            fail("%s %s: not a number", name, words[at + 1]);
        if (!strcmp(name, "connections") && value >= 1 && value <= CONNECTIONS_MAX)
            option.connections = (size_t)value;
        else if (!strcmp(name, "depth") && value >= 1 && value <= DEPTH_MAX)
            option.depth = (size_t)value;
        else if (!strcmp(name, "sources") && value <= 50000)
            option.sources = (size_t)value;
        else if (!strcmp(name, "warmup"))
            option.warmup = value;
        else if (!strcmp(name, "seconds"))
            option.seconds = value;
        else if (!strcmp(name, "count"))
            option.count = (size_t)value;
        else if (!strcmp(name, "pid") && pids < PIDS_MAX) {
            if (clock_getcpuclockid((pid_t)value, &clocks[pids++]))
                fail("there is no process %s", words[at + 1]);
        } else
            fail("%s %s: see the head of load.c", name, words[at + 1]);
    }
    if (count_ % 2)
        fail("%s: of what value?", words[count_ - 1]);
}

int main(int count_, char **words)
{
    char *colon = count_ >= 5 ? strrchr(words[2], ':') : NULL;
    if (!colon)
        fail("load PROTOCOL HOST:PORT REQUESTS EXPECTED [option value]...");
    *colon = 0;
    struct sockaddr_in server = { .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(colon + 1)) };
    if (inet_pton(AF_INET, words[2], &server.sin_addr) != 1)
        fail("%s: not an IPv4 address", words[2]);
    measure = !strcmp(words[1], "line") ? line_length : !strcmp(words[1], "redis") ? redis_length : http_length;
    if (measure == http_length && strcmp(words[1], "http"))
        fail("%s: the protocols are line, redis and http", words[1]);
    expected = words[4];
    expected_length = strlen(expected);
    read_options(count_ - 5, words + 5);
    read_requests(words[3]);
    if (option.count)
        unsent = option.count;
    epoll = epoll_create1(0);
    Connection *connections = allocated(calloc(option.connections, sizeof *connections));
    for (size_t number = 0; number < option.connections; number++)
        open_connection(&connections[number], number, &server);

    uint64_t now_ns = ns_of(CLOCK_MONOTONIC), warm_ns = now_ns + (uint64_t)(option.count ? 0 : option.warmup * 1e9);
    for (size_t number = 0; number < option.connections; number++)
        top_up(&connections[number], now_ns);
    while (now_ns < warm_ns)
        now_ns = turn();
    forget_counts();
    uint64_t began_ns = now_ns, end_ns = now_ns + (uint64_t)(option.seconds * 1e9);
    uint64_t own_ns = ns_of(CLOCK_PROCESS_CPUTIME_ID), server_ns[PIDS_MAX];
    for (size_t at = 0; at < pids; at++)
        server_ns[at] = ns_of(clocks[at]);
    while (option.count ? answers + errors < option.count : now_ns < end_ns)
        now_ns = turn();
    double took_s = (double)(ns_of(CLOCK_MONOTONIC) - began_ns) / 1e9;
    own_ns = ns_of(CLOCK_PROCESS_CPUTIME_ID) - own_ns;
    printf("{\"answers\":%llu,\"errors\":%llu,\"seconds\":%.6f,\"per_s\":%.1f,\"p50_us\":%.1f,\"p99_us\":%.1f,"
           "\"max_us\":%.1f,\"bytes_in\":%llu,\"load_cpu_s\":%.6f,\"server_cpu_s\":[",
           (unsigned long long)answers, (unsigned long long)errors, took_s, (double)answers / took_s,
           percentile_us(0.5), percentile_us(0.99), (double)longest_ns / 1000, (unsigned long long)bytes_in,
           (double)own_ns / 1e9);
    for (size_t at = 0; at < pids; at++)
        printf("%s%.6f", at ? "," : "", (double)(ns_of(clocks[at]) - server_ns[at]) / 1e9);
    printf("],\"wrong\":\"%s\"}\n", wrong);
    fflush(stdout);

    /* What is still under way ends, so that it is not the next measurement's. */
    unsent = 0;
    for (size_t number = 0; number < option.connections; number++)
        while (connections[number].under_way)
            turn();
    return 0;
}
