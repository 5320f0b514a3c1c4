/* A webcam for tests, loaded with LD_PRELOAD: the file named by FAKE_V4L2 answers as a driver of Linux does.
 *
 * FAKE_V4L2_MODE says what sort of camera it is:
 *   mjpg       gives the JPEG of the file FAKE_V4L2_JPEG, again and again
 *   yuyv       gives gray pictures, and knows no MJPG
 *   damaged    gives every second time a JPEG that is cut off
 *   silent     never gives a picture
 *   gone       gives ten pictures, then it is unplugged
 *   busy       is used by another program
 *   denied     belongs to a group that the user isn't in
 *   forbidden  isn't passed into this container
 *   codec, receiver, metadata   a node that is no camera
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BUFFERS = 8, BUFFER_BYTES = 1 << 21, DESCRIPTORS = 1024 };

static bool ours[DESCRIPTORS];
static struct v4l2_pix_format format = {.width = 640, .height = 480, .pixelformat = V4L2_PIX_FMT_YUYV};
static unsigned fps = 30, waiting[BUFFERS], waiting_count, given;

static bool is(const char *mode) {
    const char *asked = getenv("FAKE_V4L2_MODE");
    return asked && !strcmp(asked, mode);
}

static int fail(int error) {
    errno = error;
    return -1;
}

/* The buffers live in memory of their own, so that mmap needs no fake. */
static int open_device(void) {
    if (is("denied")) return fail(EACCES);
    if (is("forbidden")) return fail(EPERM);
    int device = memfd_create("fake_v4l2", MFD_CLOEXEC);
    if (device < 0 || device >= DESCRIPTORS || ftruncate(device, BUFFERS * BUFFER_BYTES)) return fail(EMFILE);
    ours[device] = true;
    given = 0;
    return device;
}

#define OPEN(name)                                                                   \
    int name(const char *path, int flags, ...) {                                     \
        const char *device = getenv("FAKE_V4L2");                                    \
        if (device && !strcmp(path, device)) return open_device();                   \
        va_list rest;                                                                \
        va_start(rest, flags);                                                       \
        int mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, int) : 0;          \
        va_end(rest);                                                                \
        int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, #name);               \
        return real(path, flags, mode);                                              \
    }
OPEN(open)
OPEN(open64)

int close(int descriptor) {
    if (descriptor >= 0 && descriptor < DESCRIPTORS) ours[descriptor] = false;
    int (*real)(int) = dlsym(RTLD_NEXT, "close");
    return real(descriptor);
}

/* Called by OpenCV to wait for a picture. */
int select(int count, fd_set *read, fd_set *write, fd_set *except, struct timeval *timeout) {
    int (*real)(int, fd_set *, fd_set *, fd_set *, struct timeval *) = dlsym(RTLD_NEXT, "select");
    bool silent = is("silent") && count > 0 && ours[count - 1];
    return silent ? real(0, NULL, NULL, NULL, timeout) : real(count, read, write, except, timeout);
}

static int query_capability(struct v4l2_capability *answer) {
    memset(answer, 0, sizeof *answer);
    strcpy((char *)answer->driver, is("receiver") ? "unicam" : "uvcvideo");
    strcpy((char *)answer->card, is("codec") ? "bcm2835-codec-decode" : "Fake Cam");
    answer->device_caps = V4L2_CAP_STREAMING | (is("codec")      ? V4L2_CAP_VIDEO_M2M_MPLANE
                                                : is("metadata") ? V4L2_CAP_META_CAPTURE
                                                                 : V4L2_CAP_VIDEO_CAPTURE);
    /* What the hardware can do in all its nodes together: capture, too, where this node is for metadata. */
    answer->capabilities = answer->device_caps | V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_DEVICE_CAPS;
    return 0;
}

static int set_format(struct v4l2_format *asked) {
    if (is("busy")) return fail(EBUSY);
    bool known = asked->fmt.pix.pixelformat == (is("yuyv") ? V4L2_PIX_FMT_YUYV : V4L2_PIX_FMT_MJPEG);
    if (known || is("yuyv")) format.pixelformat = is("yuyv") ? V4L2_PIX_FMT_YUYV : asked->fmt.pix.pixelformat;
    /* It has two sizes, and takes the nearer. */
    bool large = asked->fmt.pix.width > 480;
    format.width = large ? 640 : 320;
    format.height = large ? 480 : 240;
    format.bytesperline = format.width * 2;
    format.sizeimage = format.bytesperline * format.height;
    asked->fmt.pix = format;
    return 0;
}

static int frame_rate(struct v4l2_streamparm *parameters, bool set) {
    if (set) fps = parameters->parm.capture.timeperframe.denominator > 15 ? 30 : 15;
    parameters->parm.capture.timeperframe = (struct v4l2_fract){1, fps};
    return 0;
}

static size_t draw(int device, unsigned index) {
    static char picture[BUFFER_BYTES];
    size_t size;
    if (is("yuyv")) {
        size = format.sizeimage;
        memset(picture, 128, size);
    } else {
        FILE *file = fopen(getenv("FAKE_V4L2_JPEG"), "rb");
        size = fread(picture, 1, sizeof picture, file);
        fclose(file);
        if (is("damaged") && given % 2) size = 20;
    }
    return pwrite(device, picture, size, (off_t)index * BUFFER_BYTES) == (ssize_t)size ? size : 0;
}

static int give_picture(int device, struct v4l2_buffer *buffer) {
    if (is("silent") || !waiting_count) return fail(EAGAIN);
    if (is("gone") && given == 10) {
        unlink(getenv("FAKE_V4L2"));
        return fail(ENODEV);
    }
    buffer->index = waiting[0];
    memmove(waiting, waiting + 1, --waiting_count * sizeof *waiting);
    buffer->bytesused = draw(device, buffer->index);
    buffer->length = BUFFER_BYTES;
    given++;
    return 0;
}

int ioctl(int device, unsigned long request, ...) {
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (device < 0 || device >= DESCRIPTORS || !ours[device]) {
        int (*real)(int, unsigned long, ...) = dlsym(RTLD_NEXT, "ioctl");
        return real(device, request, argument);
    }
    struct v4l2_buffer *buffer = argument;
    switch ((unsigned)request) {
    case (unsigned)VIDIOC_QUERYCAP: return query_capability(argument);
    case (unsigned)VIDIOC_G_FMT: ((struct v4l2_format *)argument)->fmt.pix = format; return 0;
    case (unsigned)VIDIOC_S_FMT: return set_format(argument);
    case (unsigned)VIDIOC_G_PARM: return frame_rate(argument, false);
    case (unsigned)VIDIOC_S_PARM: return frame_rate(argument, true);
    case (unsigned)VIDIOC_REQBUFS:
        if (is("busy")) return fail(EBUSY);
        waiting_count = 0;
        return 0;
    case (unsigned)VIDIOC_QUERYBUF:
        buffer->length = BUFFER_BYTES;
        buffer->m.offset = buffer->index * BUFFER_BYTES;
        return 0;
    case (unsigned)VIDIOC_QBUF: waiting[waiting_count++] = buffer->index; return 0;
    case (unsigned)VIDIOC_DQBUF: return give_picture(device, buffer);
    case (unsigned)VIDIOC_STREAMON:
    case (unsigned)VIDIOC_STREAMOFF: return 0;
    default: return fail(EINVAL);
    }
}
