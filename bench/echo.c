/*
 * What the machine allows a server of lines: it gives back what comes, by epoll, and does nothing else.
 *
 *     echo
 *
 * Prints the port of 127.0.0.1 that it listens on, and serves until it is killed. Each chunk is given back at once, and
 * with one send(); a client that does not take its answers is waited for, so it must not have more under way than fit
 * into the buffers of its sockets.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <unistd.h>

int main(void)
{
    static char buffer[64 * 1024];
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t size = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0), epoll = epoll_create1(0), yes = 1;
    struct epoll_event event = { EPOLLIN, { .fd = listener } }, events[256];
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024)
        || getsockname(listener, (struct sockaddr *)&address, &size)
        || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event)) {
        perror("echo");
        return 1;
    }
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(epoll, events, 256, -1);
        for (int at = 0; at < ready; at++) {
            int link = events[at].data.fd;
            if (link == listener) {
                event.data.fd = accept(listener, NULL, NULL);
                setsockopt(event.data.fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
                epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event);
                continue;
            }
            ssize_t got = recv(link, buffer, sizeof buffer, 0);
            if (got <= 0 || send(link, buffer, (size_t)got, MSG_NOSIGNAL) < 0)
                close(link);
        }
    }
}
