/*
 * The least that a FUSE or CUSE server can do: each ioctl is answered with 0, by one thread.
 * With "copy", the least that one can do which has arguments: it copies 12 bytes from the caller,
 * and back to it for every other ioctl.
 * usage: null fuse FILE [copy] | null cuse NAME [copy]. Writes a line once it serves.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/uio.h>
#include <unistd.h>

static int device, copies;

static void copy(const struct fuse_in_header *in)
{
	const struct fuse_ioctl_in *ioctl = (const void *)(in + 1);
	static int back;
	char argument[12];
	struct iovec ours = { argument, sizeof(argument) };
	struct iovec theirs = { (void *)ioctl->arg, sizeof(argument) };

	if (process_vm_readv(in->pid, &ours, 1, &theirs, 1, 0) < 0)
		perror("copy");
	back = !back;
	if (back && process_vm_writev(in->pid, &ours, 1, &theirs, 1, 0) < 0)
		perror("copy");
}

static void reply(__u64 unique, int error, const void *body, size_t length)
{
	struct fuse_out_header header = { sizeof(header) + length, error, unique };
	struct iovec parts[] = { { &header, sizeof(header) }, { (void *)body, length } };

	if (writev(device, parts, 2) < 0 && errno != ENOENT)
		perror("reply");
}

static void answer(const struct fuse_in_header *in)
{
	const void *body = in + 1;

	switch (in->opcode) {
	case FUSE_INIT: {
		const struct fuse_init_in *init = body;
		struct fuse_init_out out = { .major = FUSE_KERNEL_VERSION,
					     .minor = FUSE_KERNEL_MINOR_VERSION,
					     .max_readahead = init->max_readahead,
					     .max_write = 65536 };
		reply(in->unique, 0, &out, sizeof(out));
		break;
	}
	case FUSE_GETATTR: {
		struct fuse_attr_out out = { .attr_valid = 86400,
					     .attr = { .ino = 1, .mode = 0100666, .nlink = 1 } };
		reply(in->unique, 0, &out, sizeof(out));
		break;
	}
	case FUSE_OPEN: {
		struct fuse_open_out out = { .open_flags = FOPEN_DIRECT_IO };
		reply(in->unique, 0, &out, sizeof(out));
		break;
	}
	case FUSE_IOCTL: {
		struct fuse_ioctl_out out = { .result = 0 };

		if (copies)
			copy(in);
		reply(in->unique, 0, &out, sizeof(out));
		break;
	}
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		break;
	case FUSE_FLUSH:
	case FUSE_RELEASE:
		reply(in->unique, 0, NULL, 0);
		break;
	default:
		reply(in->unique, -ENOSYS, NULL, 0);
	}
}

static int begin_cuse(const char *name)
{
	static char buffer[65536];
	struct cuse_init_out out = { .major = FUSE_KERNEL_VERSION,
				     .minor = FUSE_KERNEL_MINOR_VERSION,
				     .flags = CUSE_UNRESTRICTED_IOCTL,
				     .max_read = 65536, .max_write = 65536 };
	char body[sizeof(out) + 128];
	int length;

	device = open("/dev/cuse", O_RDWR | O_CLOEXEC);
	if (device < 0 || read(device, buffer, sizeof(buffer)) < 0)
		return -1;
	memcpy(body, &out, sizeof(out));
	length = sprintf(body + sizeof(out), "DEVNAME=%s", name) + 1;
	reply(((struct fuse_in_header *)buffer)->unique, 0, body, sizeof(out) + length);
	return 0;
}

static int begin_fuse(const char *path)
{
	char options[128];

	device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	sprintf(options, "fd=%d,rootmode=100666,user_id=0,group_id=0,allow_other", device);
	return mount("null", path, "fuse", MS_NOSUID | MS_NODEV, options);
}

int main(int argc, char **argv)
{
	static char buffer[1 << 17];

	copies = argc == 4 && !strcmp(argv[3], "copy");
	if (argc != 3 + copies || (strcmp(argv[1], "cuse") ? begin_fuse(argv[2]) : begin_cuse(argv[2]))) {
		perror("null");
		return 1;
	}
	puts("serving");
	fflush(stdout);
	for (;;) {
		ssize_t length = read(device, buffer, sizeof(buffer));

		if (length >= (ssize_t)sizeof(struct fuse_in_header))
			answer((struct fuse_in_header *)buffer);
		else if (errno != EINTR && errno != ENOENT && errno != EAGAIN)
			return 0;
	}
}
