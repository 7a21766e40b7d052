/*
 * The time of a call that does as little as its server lets it: a caller, alone.
 * usage: call-time NODE COMMAND CALLS. Writes nanoseconds a call.
 * The argument is 8 zero bytes, as iommufd's commands begin: whoever looks at it finds that wrong.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <time.h>

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1e9 + time.tv_nsec;
}

int main(int argc, char **argv)
{
	unsigned long long argument = 0;
	long calls, call;
	unsigned long command;
	double begin;
	int node;

	if (argc != 4 || (node = open(argv[1], O_RDWR)) < 0) {
		perror("call-time");
		return 1;
	}
	command = strtoul(argv[2], NULL, 0);
	calls = atol(argv[3]);
	begin = now();
	for (call = 0; call < calls; call++)
		ioctl(node, command, &argument);
	printf("%.0f\n", (now() - begin) / calls);
	return 0;
}
